// The functions of NCCL, among threads of one process.
//
// A call is an item of its stream that begins when the items of all who take part stand first in theirs. Each rank then
// does its part by itself, from a copy of what the others gave, as a rank may go on long before the slowest has done.
#include "memory.hpp"
#include "nccl.hpp"
#include "report.hpp"
#include "streams.hpp"
#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

using namespace sim;

namespace {

enum Result { SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };
enum Kind { ALL_REDUCE, REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER, SEND, RECEIVE };
constexpr int U8 = 1, F32 = 7, BF16 = 9; // ncclDataType_t
constexpr int SUM = 0, MAX = 2;          // ncclRedOp_t
constexpr int NO_COLOR = -1;

const char* const NAMES[] = {"all-reduce", "reduce", "broadcast", "all-gather", "reduce-scatter", "send", "receive"};

size_t bytes_of(int element) { return element == U8 ? 1 : element == F32 ? 4 : element == BF16 ? 2 : 0; }

// What a rank calls.
struct Call {
    Kind kind;
    uintptr_t from, to;
    size_t count; // elements that the call names
    int element, reduction, root;
};

// A rank's part of a call.
struct Part {
    Call call;
    int rank;
    Stream* stream;
    Clock seen; // what the host knew at the call; what its stream knew, once all have come
    bool has_come = false;
    std::vector<unsigned char> given; // a copy, once all have come
};

// All parts of a call.
struct Meeting {
    std::vector<std::shared_ptr<Part>> parts; // null: not called yet
    bool is_copied = false;
};

struct World {
    std::vector<int> devices; // of each rank; below 0: not joined yet
    int error = 0;            // what every rank is told
    std::string text;
    std::map<uint64_t, std::shared_ptr<Meeting>> collectives;                  // by number
    std::map<std::tuple<int, int, uint64_t>, std::shared_ptr<Meeting>> messages; // by sender, receiver and number
    struct Split {
        std::vector<std::pair<int, int>> wishes; // colour and key of each rank
        std::vector<struct Comm*> comms;
        size_t asked = 0;
    };
    std::map<uint64_t, Split> splits;
    bool is_whole() const { return std::find(devices.begin(), devices.end(), -1) == devices.end(); }
    int size() const { return int(devices.size()); }
};

struct Comm {
    std::shared_ptr<World> world; // null while its split is not done
    int rank, device;
    uint64_t collectives = 0, splits = 0;
    std::map<std::pair<int, int>, uint64_t> messages; // by kind and peer
    bool is_open = true, is_aborted = false;
};

std::map<void*, std::shared_ptr<Comm>> comms;
std::map<uint64_t, std::shared_ptr<World>> worlds; // by the number in a unique id
int64_t collectives_left = -1;                     // until one fails; below 0: none will

// Calls between a start and an end of a group go to their streams together.
struct Grouped {
    Comm* comm;
    std::shared_ptr<Meeting> meeting;
    std::shared_ptr<Part> part;
};
thread_local int depth = 0;
thread_local std::vector<Grouped> grouped;

void fail(World& world, int error, const std::string& text) {
    if (world.error) return;
    world.error = error;
    world.text = text;
    report(text);
    tell_others();
}

std::string described(const Part& part) {
    const Call& call = part.call;
    std::string text = "rank " + std::to_string(part.rank) + " calls " + NAMES[call.kind] + " of " +
                       std::to_string(call.count) + " elements of type " + std::to_string(call.element);
    if (call.kind == REDUCE || call.kind == BROADCAST) text += " with root " + std::to_string(call.root);
    return text;
}

// Bytes that a rank of `size` gives and gets.
size_t given_bytes(const Part& part, int size) {
    const Call& call = part.call;
    bool gives = call.kind != RECEIVE && (call.kind != BROADCAST || part.rank == call.root);
    return gives ? call.count * bytes_of(call.element) * (call.kind == REDUCE_SCATTER ? size : 1) : 0;
}
size_t got_bytes(const Part& part, int size) {
    const Call& call = part.call;
    bool gets = call.kind != SEND && (call.kind != REDUCE || part.rank == call.root);
    return gets ? call.count * bytes_of(call.element) * (call.kind == ALL_GATHER ? size : 1) : 0;
}

// Whether `part` knows what `other` knew: if something of it has come over.
bool learns_from(const Part& part, const Part& other) {
    switch (part.call.kind) {
    case ALL_REDUCE:
    case ALL_GATHER:
    case REDUCE_SCATTER: return true;
    case REDUCE: return part.rank == part.call.root;
    case BROADCAST: return other.rank == part.call.root;
    case SEND: return false;
    case RECEIVE: return true;
    }
    return false;
}

// Everybody has come: what each gives is copied, before anyone may overwrite it.
void copy_given(Meeting& meeting, int size) {
    if (std::exchange(meeting.is_copied, true)) return;
    for (auto& part : meeting.parts) {
        size_t bytes = given_bytes(*part, size);
        auto* start = reinterpret_cast<unsigned char*>(part->call.from);
        if (bytes && is_readable(part->call.from, bytes)) part->given.assign(start, start + bytes);
        part->given.resize(bytes, POISON); // what must not be read is reported where the rank does its part
        join(part->seen, part->stream->seen);
    }
}

float wide(const unsigned char* at, int element) {
    uint32_t bits = 0;
    if (element == F32) memcpy(&bits, at, 4);
    else memcpy(reinterpret_cast<unsigned char*>(&bits) + 2, at, 2);
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

void narrow(unsigned char* at, int element, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (element == F32) return void(memcpy(at, &bits, 4));
    bits = value != value ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
    memcpy(at, reinterpret_cast<unsigned char*>(&bits) + 2, 2);
}

// Over ranks `first`..`end` as trine's other communicators do: a tree that splits behind the largest power of two.
template <class T, class Load> T fold(int first, int end, int reduction, const Load& load) {
    if (end - first == 1) return load(first);
    int half = 1;
    while (2 * half < end - first) half *= 2;
    T left = fold<T>(first, first + half, reduction, load), right = fold<T>(first + half, end, reduction, load);
    return reduction == SUM ? T(left + right) : left != left || left > right ? left : right;
}

std::vector<unsigned char> reduced(const Meeting& meeting, const Call& call, size_t first) {
    size_t width = bytes_of(call.element);
    std::vector<unsigned char> result(call.count * width);
    int size = int(meeting.parts.size());
    for (size_t i = 0; i < call.count; i++) {
        auto at = [&](int rank) { return meeting.parts[rank]->given.data() + (first + i) * width; };
        if (call.element == U8)
            result[i] = fold<uint8_t>(0, size, call.reduction, [&](int rank) { return *at(rank); });
        else
            narrow(&result[i * width], call.element,
                   fold<float>(0, size, call.reduction, [&](int rank) { return wide(at(rank), call.element); }));
    }
    return result;
}

std::vector<unsigned char> result_of(const Meeting& meeting, const Part& part) {
    const Call& call = part.call;
    switch (call.kind) {
    case ALL_REDUCE: return reduced(meeting, call, 0);
    case REDUCE: return part.rank == call.root ? reduced(meeting, call, 0) : std::vector<unsigned char>();
    case REDUCE_SCATTER: return reduced(meeting, call, part.rank * call.count);
    case BROADCAST: return meeting.parts[call.root]->given;
    case RECEIVE: return meeting.parts[0]->given;
    case SEND: return {};
    case ALL_GATHER: break;
    }
    std::vector<unsigned char> all;
    for (auto& other : meeting.parts) all.insert(all.end(), other->given.begin(), other->given.end());
    return all;
}

// A rank does its part.
void take_part(const Meeting& meeting, const Part& part, int size) {
    size_t given = given_bytes(part, size), got = got_bytes(part, size);
    bool is_fine = !given || access(part.call.from, given, false, nullptr);
    is_fine = (!got || access(part.call.to, got, true, nullptr)) && is_fine;
    if (!is_fine || !got) return;
    auto result = result_of(meeting, part);
    memcpy(reinterpret_cast<void*>(part.call.to), result.data(), std::min(got, result.size()));
}

bool have_all_come(const Meeting& meeting) {
    return std::all_of(meeting.parts.begin(), meeting.parts.end(), [](auto& part) { return part && part->has_come; });
}

// Queues calls of one stream as one item: all of them begin together.
void post_calls(Stream& stream, std::vector<Grouped> calls) {
    std::string name;
    for (auto& call : calls) {
        name += (name.empty() ? "" : ", ") + std::string(NAMES[call.part->call.kind]);
        if (call.part->call.kind == SEND) name += " to " + std::to_string(call.part->call.root);
        if (call.part->call.kind == RECEIVE) name += " from " + std::to_string(call.part->call.root);
    }
    name += " of rank " + std::to_string(calls[0].part->rank);
    auto is_aborted = [](const Grouped& call) { return call.comm->is_aborted; };
    auto can_begin = [calls, is_aborted] {
        bool can = true;
        for (auto& call : calls) call.part->has_come = true;
        for (auto& call : calls)
            can &= is_aborted(call) || (!call.comm->world->error && have_all_come(*call.meeting));
        return can;
    };
    auto learn = [calls, is_aborted](Clock& seen) {
        for (auto& call : calls) {
            if (is_aborted(call)) continue;
            copy_given(*call.meeting, call.comm->world->size());
            for (auto& other : call.meeting->parts)
                if (learns_from(*call.part, *other)) join(seen, other->seen);
        }
    };
    auto work = [calls, is_aborted] {
        for (auto& call : calls)
            if (!is_aborted(call)) take_part(*call.meeting, *call.part, call.comm->world->size());
        return 0;
    };
    post(stream, {name, work, can_begin, learn, {}});
}

void end_group() {
    std::vector<Grouped> calls = std::exchange(grouped, {});
    while (!calls.empty()) {
        Stream* stream = calls[0].part->stream;
        auto others = std::stable_partition(calls.begin(), calls.end(), [&](auto& c) { return c.part->stream == stream; });
        post_calls(*stream, std::vector<Grouped>(calls.begin(), others));
        calls.erase(calls.begin(), others);
    }
}

Comm* find(void* handle) {
    auto found = comms.find(handle);
    return found == comms.end() || !found->second->is_open ? nullptr : found->second.get();
}

int state_of(const Comm& comm) {
    if (!comm.world) return IN_PROGRESS;
    if (comm.world->error) return comm.world->error;
    return comm.world->is_whole() ? 0 : IN_PROGRESS;
}

bool agree(const Call& one, const Call& other) {
    bool is_message = one.kind == SEND || one.kind == RECEIVE;
    bool is_same = is_message || (one.kind == other.kind && one.reduction == other.reduction && one.root == other.root);
    return is_same && one.count == other.count && one.element == other.element;
}

// Adds a part to those of the other ranks. A meeting that is whole is forgotten: its items keep it.
template <class Key>
std::shared_ptr<Meeting> meet(std::map<Key, std::shared_ptr<Meeting>>& all, Key key, size_t size, size_t place,
                              World& world, const std::shared_ptr<Part>& part) {
    auto& kept = all[key];
    if (!kept) kept = std::make_shared<Meeting>(), kept->parts.resize(size);
    for (auto& other : kept->parts)
        if (other && !agree(other->call, part->call))
            fail(world, INVALID_USAGE, "nccl: " + described(*other) + ", and " + described(*part));
    kept->parts[place] = part;
    auto meeting = kept;
    if (std::find(meeting->parts.begin(), meeting->parts.end(), nullptr) == meeting->parts.end()) all.erase(key);
    return meeting;
}

std::shared_ptr<Meeting> meet(Comm& comm, const std::shared_ptr<Part>& part) {
    World& world = *comm.world;
    const Call& call = part->call;
    if (call.kind != SEND && call.kind != RECEIVE)
        return meet(world.collectives, comm.collectives++, world.devices.size(), size_t(comm.rank), world, part);
    // What a rank sends to another and what it receives from it are counted apart: a rank may talk to itself.
    uint64_t number = comm.messages[{call.kind, call.root}]++;
    bool receives = call.kind == RECEIVE;
    int from = receives ? call.root : comm.rank, to = receives ? comm.rank : call.root;
    return meet(world.messages, std::make_tuple(from, to, number), 2, size_t(receives), world, part);
}

int call(void* handle, void* on, Call call) {
    Comm* comm = find(handle);
    if (!comm) return report(std::string("nccl: the communicator of a ") + NAMES[call.kind] + " is closed"), INVALID_ARGUMENT;
    if (int state = state_of(*comm)) return state == IN_PROGRESS ? INVALID_USAGE : state;
    Stream* stream = stream_of(on);
    bool has_reduction = call.reduction == SUM || call.reduction == MAX;
    bool has_root = call.root >= 0 && call.root < comm->world->size();
    if (!bytes_of(call.element) || !has_reduction || !has_root) return INVALID_ARGUMENT;
    if (!stream || stream->device != comm->device)
        return report(std::string("nccl: the stream of a ") + NAMES[call.kind] + " is closed, or of another device"), INVALID_ARGUMENT;
    auto part = std::make_shared<Part>(Part{call, comm->rank, stream, host, false, {}});
    auto meeting = meet(*comm, part);
    if (collectives_left >= 0 && collectives_left-- == 0)
        fail(*comm->world, SYSTEM_ERROR, "nccl: a failure that the test asked for");
    grouped.push_back({comm, meeting, part});
    if (depth == 0) end_group();
    return 0;
}

// Waits for a communicator that blocks.
int settled(std::unique_lock<std::mutex>& held, Comm& comm, bool is_blocking) {
    tell_others();
    while (is_blocking && state_of(comm) == IN_PROGRESS)
        if (!wait_for_others(held)) return report("nccl: not all ranks of a communicator have come"), SYSTEM_ERROR;
    return state_of(comm);
}

bool is_blocking(const void* config) {
    int blocking;
    memcpy(&blocking, static_cast<const char*>(config) + 16, sizeof blocking);
    return blocking != 0; // undefined is yes
}

void join_world(World& world, int rank, int device) {
    bool is_there = std::count(world.devices.begin(), world.devices.end(), device) > 0;
    world.devices[rank] = device;
    if (is_there) fail(world, INVALID_USAGE, "nccl: two ranks of a communicator are on GPU " + std::to_string(device));
}

// All ranks have said which part they want: those of a colour get a world, in the order of their keys.
void make_parts(const World& world, World::Split& split) {
    for (int rank = 0; rank < world.size(); rank++) {
        int colour = split.wishes[rank].first;
        if (colour == NO_COLOR || split.comms[rank]->world) continue;
        std::vector<int> members;
        for (int other = 0; other < world.size(); other++)
            if (split.wishes[other].first == colour) members.push_back(other);
        std::stable_sort(members.begin(), members.end(),
                         [&](int a, int b) { return split.wishes[a].second < split.wishes[b].second; });
        auto part = std::make_shared<World>();
        part->devices.assign(members.size(), -1);
        for (size_t place = 0; place < members.size(); place++) {
            Comm* comm = split.comms[members[place]];
            comm->world = part;
            comm->rank = int(place);
            join_world(*part, int(place), comm->device);
        }
    }
}

Comm* new_comm(void** handle, std::shared_ptr<World> world, int rank) {
    auto comm = std::make_shared<Comm>();
    comm->world = std::move(world);
    comm->rank = rank;
    comm->device = current;
    *handle = comm.get();
    comms[*handle] = comm;
    return comm.get();
}

} // namespace

namespace sim {

void fail_collective(int64_t after) { collectives_left = after; }

} // namespace sim

#define LOCKED std::unique_lock<std::mutex> held(lock)

struct UniqueId {
    char bytes[128];
};

#pragma GCC visibility push(default)
extern "C" {

int ncclGetVersion(int* version) { return *version = 21803, 0; }
const char* ncclGetErrorString(int code) {
    switch (code) {
    case 0: return "no error";
    case SYSTEM_ERROR: return "unhandled system error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    case IN_PROGRESS: return "operation in progress";
    default: return "unknown result code";
    }
}
const char* ncclGetLastError(void* handle) {
    LOCKED;
    Comm* comm = find(handle);
    return comm && comm->world ? comm->world->text.c_str() : "";
}
int ncclGetUniqueId(UniqueId* id) {
    LOCKED;
    uint64_t number = worlds.size() + 1;
    worlds[number] = std::make_shared<World>();
    memset(id, 0, sizeof *id);
    memcpy(id, &number, sizeof number);
    return 0;
}
int ncclCommInitRankConfig(void** handle, int size, UniqueId id, int rank, const void* config) {
    LOCKED;
    uint64_t number;
    memcpy(&number, &id, sizeof number);
    auto found = worlds.find(number);
    if (found == worlds.end() || size < 1 || rank < 0 || rank >= size || current < 0) return INVALID_ARGUMENT;
    World& world = *found->second;
    if (world.devices.empty()) world.devices.assign(size, -1);
    if (world.size() != size || world.devices[rank] >= 0) return INVALID_ARGUMENT;
    join_world(world, rank, current);
    return settled(held, *new_comm(handle, found->second, rank), is_blocking(config));
}
int ncclCommSplit(void* handle, int colour, int key, void** part, const void* config) {
    LOCKED;
    Comm* comm = find(handle);
    if (!comm || colour < NO_COLOR) return INVALID_ARGUMENT;
    if (int state = state_of(*comm)) return state == IN_PROGRESS ? INVALID_USAGE : state;
    World& world = *comm->world;
    World::Split& split = world.splits[comm->splits++];
    split.wishes.resize(world.size());
    split.comms.resize(world.size());
    split.wishes[comm->rank] = {colour, key};
    *part = nullptr;
    if (colour != NO_COLOR) split.comms[comm->rank] = new_comm(part, nullptr, 0);
    if (++split.asked == world.devices.size()) make_parts(world, split);
    return *part ? settled(held, *find(*part), is_blocking(config)) : 0;
}
int ncclCommFinalize(void* handle) {
    LOCKED;
    return find(handle) ? 0 : INVALID_ARGUMENT;
}
int ncclCommDestroy(void* handle) {
    LOCKED;
    Comm* comm = find(handle);
    return comm ? (comm->is_open = false, 0) : INVALID_ARGUMENT;
}
// What is on its way ends without a result.
int ncclCommAbort(void* handle) {
    LOCKED;
    Comm* comm = find(handle);
    if (!comm) return INVALID_ARGUMENT;
    comm->is_aborted = true;
    comm->is_open = false;
    return tell_others(), 0;
}
int ncclCommGetAsyncError(void* handle, int* code) {
    LOCKED;
    Comm* comm = find(handle);
    return comm ? (*code = state_of(*comm), 0) : INVALID_ARGUMENT;
}
int ncclGroupStart() { return depth++, 0; }
int ncclGroupEnd() {
    LOCKED;
    if (depth == 0) return INVALID_USAGE;
    if (--depth == 0) end_group();
    return 0;
}

int ncclAllReduce(uintptr_t from, uintptr_t to, size_t count, int element, int reduction, void* comm, void* stream) {
    LOCKED;
    return call(comm, stream, {ALL_REDUCE, from, to, count, element, reduction, 0});
}
int ncclReduce(uintptr_t from, uintptr_t to, size_t count, int element, int reduction, int root, void* comm, void* stream) {
    LOCKED;
    return call(comm, stream, {REDUCE, from, to, count, element, reduction, root});
}
int ncclBroadcast(uintptr_t from, uintptr_t to, size_t count, int element, int root, void* comm, void* stream) {
    LOCKED;
    return call(comm, stream, {BROADCAST, from, to, count, element, SUM, root});
}
int ncclAllGather(uintptr_t from, uintptr_t to, size_t count, int element, void* comm, void* stream) {
    LOCKED;
    return call(comm, stream, {ALL_GATHER, from, to, count, element, SUM, 0});
}
int ncclReduceScatter(uintptr_t from, uintptr_t to, size_t count, int element, int reduction, void* comm, void* stream) {
    LOCKED;
    return call(comm, stream, {REDUCE_SCATTER, from, to, count, element, reduction, 0});
}
int ncclSend(uintptr_t from, size_t count, int element, int peer, void* comm, void* stream) {
    LOCKED;
    return call(comm, stream, {SEND, from, 0, count, element, SUM, peer});
}
int ncclRecv(uintptr_t to, size_t count, int element, int peer, void* comm, void* stream) {
    LOCKED;
    return call(comm, stream, {RECEIVE, 0, to, count, element, SUM, peer});
}
}
#pragma GCC visibility pop
