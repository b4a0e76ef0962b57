// The functions of NCCL, among threads of one process and among processes of one machine.
//
// A call is an item of its stream that begins when the items of all who take part stand first in theirs. Each rank then
// does its part by itself, from a copy of what the others gave, as a rank may go on long before the slowest has done.
#include "memory.hpp"
#include "nccl.hpp"
#include "processes.hpp"
#include "report.hpp"
#include "streams.hpp"
#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <set>
#include <thread>
#include <utility>

using namespace sim;

namespace {

enum Result { SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum Kind { ALL_REDUCE, REDUCE, BROADCAST, ALL_GATHER, REDUCE_SCATTER, SEND, RECEIVE };
constexpr int U8 = 1, U32 = 3, U64 = 5, F16 = 6, F32 = 7, F64 = 8, BF16 = 9; // ncclDataType_t
constexpr int SUM = 0, MAX = 2, AVERAGE = 4;                                 // ncclRedOp_t
constexpr int NO_COLOR = -1;

using Clocks = std::chrono::steady_clock;
using Time = Clocks::time_point;

const char* const NAMES[] = {"all-reduce", "reduce", "broadcast", "all-gather", "reduce-scatter", "send", "receive"};

size_t bytes_of(int element) {
    switch (element) {
    case U8: return 1;
    case F16:
    case BF16: return 2;
    case U32:
    case F32: return 4;
    case U64:
    case F64: return 8;
    default: return 0;
    }
}

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
    Stream* stream; // null: of another process
    Clock seen;     // what the host knew at the call; what its stream knew, once all have come
    bool has_come = false;
    std::vector<unsigned char> given; // a copy, once all have come
};

// All parts of a call.
struct Meeting {
    std::vector<std::shared_ptr<Part>> parts; // null: not called yet
    bool is_copied = false;
    Time begins; // over a slow link; known once all have come
};

// Which call: of a collective both ranks are -1, of a message they are its ends; and its number.
using Key = std::tuple<int, int, uint64_t>;

struct Member {
    int device = -1;         // below 0: not joined yet
    bool is_outside = false; // in another process
    bool has_left = false;   // it has closed its communicator
    int vouched = 0;         // its rank where the unique id was used
};

struct World {
    uint64_t key; // the same in all processes
    std::vector<Member> members;
    int error = 0;            // what every rank is told
    int open_here = 0;        // communicators of this process
    std::shared_ptr<Log> log; // null if all ranks are in this process, or none is any more
    std::map<Key, std::shared_ptr<Meeting>> meetings;  // that not all have called
    std::map<std::pair<int, Key>, std::shared_ptr<Part>> expected; // called in another process, whose stream is not there yet
    std::vector<std::shared_ptr<Meeting>> open;        // with ranks of other processes, that have not begun
    struct Split {
        std::vector<std::pair<int, int>> wishes; // colour and key of each rank
        std::vector<struct Comm*> comms;         // null: of another process, or in no part
        size_t asked = 0;
    };
    std::map<uint64_t, Split> splits;
    int size() const { return int(members.size()); }
    bool is_whole() const {
        return size() > 0 && std::all_of(members.begin(), members.end(), [](auto& m) { return m.device >= 0; });
    }
    bool is_here() const {
        return is_whole() && std::none_of(members.begin(), members.end(), [](auto& m) { return m.is_outside; });
    }
};

// What one process tells the others; a text or bytes follow.
struct Said {
    enum What { JOIN, CALL, COME, SPLIT, LEAVE, FAIL } what;
    int rank;
    uint64_t world, number;
    int first, second; // JOIN: size and device; SPLIT: colour and key; FAIL: the error
    Call call;
};

struct Comm {
    std::shared_ptr<World> world; // null while its split is not done
    int rank, device;
    uint64_t collectives = 0, splits = 0;
    std::map<std::pair<int, int>, uint64_t> messages; // by kind and peer
    bool is_open = true, is_aborted = false;
};

std::map<void*, std::shared_ptr<Comm>> comms;
std::map<uint64_t, std::shared_ptr<World>> worlds; // by their keys
std::string last_error;                            // in words
int64_t collectives_left = -1;                     // until one fails; below 0: none will
std::chrono::duration<double> link_delay(0);       // from the last rank's coming to the beginning
Time next_begin = Time::max();                     // of what is on a slow link
bool is_serving = false, has_ended = false;        // the thread that listens to other processes

// Calls between a start and an end of a group go to their streams together.
struct Grouped {
    Comm* comm;
    std::shared_ptr<Meeting> meeting;
    std::shared_ptr<Part> part;
    uint64_t number;
};
thread_local int depth = 0;
thread_local std::vector<Grouped> grouped;

void say(const World& world, Said said, const std::string& more = "") {
    if (!world.log) return;
    said.world = world.key;
    world.log->say(std::string(reinterpret_cast<const char*>(&said), sizeof said) + more);
}

void fail(World& world, int error, const std::string& text) {
    if (world.error) return;
    world.error = error;
    last_error = text;
    report(text);
    say(world, {Said::FAIL, 0, 0, 0, error, 0, {}}, text);
    tell_others();
}

uint64_t hash(const std::string& text, uint64_t from = 0xcbf29ce484222325u) {
    for (unsigned char byte : text) from = (from ^ byte) * 0x100000001b3u;
    return from;
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

// What a rank gives, as it is now.
void copy_given(Part& part, int size) {
    size_t bytes = given_bytes(part, size);
    auto* start = reinterpret_cast<unsigned char*>(part.call.from);
    if (bytes && is_readable(part.call.from, bytes)) part.given.assign(start, start + bytes);
    part.given.resize(bytes, POISON); // what must not be read is reported where the rank does its part
}

// Everybody has come: what each gives is copied, before anyone may overwrite it.
void copy_given(Meeting& meeting, int size) {
    if (std::exchange(meeting.is_copied, true)) return;
    for (auto& part : meeting.parts) {
        if (!part->stream) continue; // its bytes came with the news
        copy_given(*part, size);
        join(part->seen, part->stream->seen);
    }
}

// What is added, and how it lies in memory.
template <class T> struct Plain {
    using Sum = T;
    static T load(const unsigned char* at) {
        T value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    static void store(unsigned char* at, T value) { memcpy(at, &value, sizeof value); }
};

struct Brain {
    using Sum = float;
    static float load(const unsigned char* at) {
        uint32_t bits = 0;
        memcpy(reinterpret_cast<unsigned char*>(&bits) + 2, at, 2);
        return Plain<float>::load(reinterpret_cast<unsigned char*>(&bits));
    }
    static void store(unsigned char* at, float value) {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        bits = value != value ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
        memcpy(at, reinterpret_cast<unsigned char*>(&bits) + 2, 2);
    }
};

struct Half {
    using Sum = float;
    static float load(const unsigned char* at) { return float(Plain<_Float16>::load(at)); }
    static void store(unsigned char* at, float value) { Plain<_Float16>::store(at, _Float16(value)); }
};

// Over ranks `first`..`end` as trine's other communicators do: a tree that splits behind the largest power of two.
template <class T, class Load> T fold(int first, int end, int reduction, const Load& load) {
    if (end - first == 1) return load(first);
    int half = 1;
    while (2 * half < end - first) half *= 2;
    T left = fold<T>(first, first + half, reduction, load), right = fold<T>(first + half, end, reduction, load);
    if (reduction != MAX) return T(left + right);
    return left != left || left > right ? left : right;
}

template <class E> std::vector<unsigned char> reduced_as(const Meeting& meeting, const Call& call, size_t first) {
    using Sum = typename E::Sum;
    size_t width = bytes_of(call.element);
    std::vector<unsigned char> result(call.count * width);
    int size = int(meeting.parts.size());
    for (size_t i = 0; i < call.count; i++) {
        auto at = [&](int rank) { return E::load(meeting.parts[rank]->given.data() + (first + i) * width); };
        Sum sum = fold<Sum>(0, size, call.reduction, at);
        E::store(&result[i * width], call.reduction == AVERAGE ? Sum(sum / Sum(size)) : sum);
    }
    return result;
}

std::vector<unsigned char> reduced(const Meeting& meeting, const Call& call, size_t first) {
    switch (call.element) {
    case U8: return reduced_as<Plain<uint8_t>>(meeting, call, first);
    case U32: return reduced_as<Plain<uint32_t>>(meeting, call, first);
    case U64: return reduced_as<Plain<uint64_t>>(meeting, call, first);
    case F16: return reduced_as<Half>(meeting, call, first);
    case F64: return reduced_as<Plain<double>>(meeting, call, first);
    case BF16: return reduced_as<Brain>(meeting, call, first);
    default: return reduced_as<Plain<float>>(meeting, call, first);
    }
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

Key key_of(const Call& call, int rank, uint64_t number) {
    if (call.kind == SEND) return {rank, call.root, number};
    if (call.kind == RECEIVE) return {call.root, rank, number};
    return {-1, -1, number};
}

// A rank's stream has come to its call.
void come(const Grouped& grouped) {
    Part& part = *grouped.part;
    if (std::exchange(part.has_come, true) || !grouped.comm->world->log) return;
    const World& world = *grouped.comm->world;
    copy_given(part, world.size());
    say(world, {Said::COME, part.rank, 0, grouped.number, 0, 0, part.call},
        std::string(part.given.begin(), part.given.end()));
}

void serve();

// Whether a meeting that all have come to may begin: a slow link takes its time.
bool is_over_link(Meeting& meeting) {
    if (link_delay.count() == 0) return true;
    Time now = Clocks::now();
    if (meeting.begins == Time()) meeting.begins = now + std::chrono::duration_cast<Clocks::duration>(link_delay);
    if (now >= meeting.begins) return true;
    next_begin = std::min(next_begin, meeting.begins);
    serve();
    return false;
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
        for (auto& call : calls) come(call);
        for (auto& call : calls)
            can &= is_aborted(call) ||
                   (!call.comm->world->error && have_all_come(*call.meeting) && is_over_link(*call.meeting));
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
std::shared_ptr<Meeting> meet(World& world, const std::shared_ptr<Part>& part, uint64_t number) {
    const Call& call = part->call;
    bool is_message = call.kind == SEND || call.kind == RECEIVE;
    Key key = key_of(call, part->rank, number);
    auto& kept = world.meetings[key];
    if (!kept) {
        kept = std::make_shared<Meeting>();
        kept->parts.resize(is_message ? 2 : world.members.size());
        if (world.log) world.open.push_back(kept);
    }
    for (auto& other : kept->parts)
        if (other && !agree(other->call, part->call))
            fail(world, INVALID_USAGE, "nccl: " + described(*other) + ", and " + described(*part));
    kept->parts[is_message ? size_t(call.kind == RECEIVE) : size_t(part->rank)] = part;
    auto meeting = kept;
    if (std::find(meeting->parts.begin(), meeting->parts.end(), nullptr) == meeting->parts.end())
        world.meetings.erase(key);
    return meeting;
}

// What a rank sends to another and what it receives from it are counted apart: a rank may talk to itself.
uint64_t next_number(Comm& comm, const Call& call) {
    bool is_message = call.kind == SEND || call.kind == RECEIVE;
    return is_message ? comm.messages[{call.kind, call.root}]++ : comm.collectives++;
}

int call(void* handle, void* on, Call call) {
    Comm* comm = find(handle);
    if (!comm) return report(std::string("nccl: the communicator of a ") + NAMES[call.kind] + " is closed"), INVALID_ARGUMENT;
    if (int state = state_of(*comm)) return state == IN_PROGRESS ? INVALID_USAGE : state;
    Stream* stream = stream_of(on);
    bool has_reduction = call.reduction == SUM || call.reduction == MAX || call.reduction == AVERAGE;
    bool has_root = call.root >= 0 && call.root < comm->world->size();
    if (!bytes_of(call.element) || !has_reduction || !has_root) return INVALID_ARGUMENT;
    if (!stream || stream->device != comm->device)
        return report(std::string("nccl: the stream of a ") + NAMES[call.kind] + " is closed, or of another device"), INVALID_ARGUMENT;
    auto part = std::make_shared<Part>(Part{call, comm->rank, stream, host, false, {}});
    uint64_t number = next_number(*comm, call);
    say(*comm->world, {Said::CALL, comm->rank, 0, number, 0, 0, call});
    auto meeting = meet(*comm->world, part, number);
    if (collectives_left >= 0 && collectives_left-- == 0)
        fail(*comm->world, SYSTEM_ERROR, "nccl: a failure that the test asked for");
    grouped.push_back({comm, meeting, part, number});
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

void join_world(World& world, int rank, Member member) {
    bool is_there = std::any_of(world.members.begin(), world.members.end(),
                                [&](auto& other) { return other.device == member.device; });
    world.members[rank] = member;
    if (is_there) fail(world, INVALID_USAGE, "nccl: two ranks of a communicator are on GPU " + std::to_string(member.device));
    if (!world.is_whole() || !world.log) return;
    world.log->hide();
    if (world.is_here()) world.log = nullptr;
}

// The part of a colour, in the order of keys.
void make_part(World& world, World::Split& split, uint64_t number, int colour) {
    std::vector<int> members;
    for (int rank = 0; rank < world.size(); rank++)
        if (split.wishes[rank].first == colour) members.push_back(rank);
    std::stable_sort(members.begin(), members.end(),
                     [&](int a, int b) { return split.wishes[a].second < split.wishes[b].second; });
    auto part = std::make_shared<World>();
    part->key = hash(std::to_string(number) + " " + std::to_string(colour), world.key);
    part->members.resize(members.size());
    part->log = world.log;
    worlds[part->key] = part;
    for (size_t place = 0; place < members.size(); place++) {
        if (Comm* comm = split.comms[members[place]]) {
            comm->world = part;
            comm->rank = int(place);
            part->open_here++;
        }
        join_world(*part, int(place), world.members[members[place]]);
    }
}

// A rank says which part it wants; once all have, those of a colour get a world.
void wish(World& world, uint64_t number, int rank, std::pair<int, int> colour_and_key, Comm* comm) {
    World::Split& split = world.splits[number];
    split.wishes.resize(world.size());
    split.comms.resize(world.size());
    split.wishes[rank] = colour_and_key;
    split.comms[rank] = comm;
    if (++split.asked < world.members.size()) return;
    std::set<int> colours;
    for (auto& [colour, key] : split.wishes)
        if (colour != NO_COLOR) colours.insert(colour);
    for (int colour : colours) {
        bool is_here = false;
        for (int other = 0; other < world.size(); other++)
            is_here |= split.wishes[other].first == colour && split.comms[other];
        if (is_here) make_part(world, split, number, colour);
    }
    tell_others();
}

// ---- other processes ----

void take_in(World& world, const Said& said, const std::string& more) {
    switch (said.what) {
    case Said::JOIN:
        if (world.members.empty()) world.members.resize(said.first);
        if (said.first != world.size() || said.rank >= world.size() || world.members[said.rank].device >= 0)
            return fail(world, INVALID_ARGUMENT, "nccl: ranks disagree on who is in a communicator");
        return join_world(world, said.rank, {said.second, true, false, said.rank});
    case Said::CALL: {
        auto part = std::make_shared<Part>(Part{said.call, said.rank, nullptr, {}, false, {}});
        world.expected[{said.rank, key_of(said.call, said.rank, said.number)}] = part;
        meet(world, part, said.number);
        return;
    }
    case Said::COME: {
        auto found = world.expected.extract({said.rank, key_of(said.call, said.rank, said.number)});
        if (found.empty()) return;
        found.mapped()->given.assign(more.begin(), more.end());
        found.mapped()->has_come = true;
        return;
    }
    case Said::SPLIT: return wish(world, said.number, said.rank, {said.first, said.second}, nullptr);
    case Said::LEAVE: world.members[said.rank].has_left = true; return;
    case Said::FAIL:
        if (world.error) return;
        world.error = said.first;
        last_error = more;
    }
}

// Ranks of other processes whose process has ended.
std::vector<std::pair<World*, int>> gone() {
    std::vector<std::pair<World*, int>> ranks;
    for (auto& [key, world] : worlds)
        for (int rank = 0; world->log && rank < world->size(); rank++) {
            const Member& member = world->members[rank];
            if (member.device >= 0 && member.is_outside && !member.has_left && !world->log->is_there(member.vouched))
                ranks.push_back({world.get(), rank});
        }
    return ranks;
}

// Takes in what other processes have said; whether anything was.
bool hear() {
    auto ended = gone(); // before it is read what they have said last
    std::set<std::shared_ptr<Log>> logs;
    for (auto& [key, world] : worlds)
        if (world->log) logs.insert(world->log);
    bool is_news = false;
    for (auto& log : logs)
        for (const std::string& message : log->hear()) {
            Said said;
            memcpy(&said, message.data(), sizeof said);
            auto found = worlds.find(said.world);
            if (found != worlds.end()) take_in(*found->second, said, message.substr(sizeof said));
            is_news = true;
        }
    for (auto& [world, rank] : ended)
        if (!world->members[rank].has_left && !world->error) {
            fail(*world, REMOTE_ERROR, "nccl: the process of rank " + std::to_string(rank) + " has ended");
            is_news = true;
        }
    return is_news;
}

// Whether a rank of another process waits for one of this, which has called and is not there yet.
bool is_waited_for() {
    bool is = false;
    for (auto& [key, world] : worlds) {
        auto has_begun = [](auto& meeting) { return meeting->is_copied; };
        auto& open = world->open;
        open.erase(std::remove_if(open.begin(), open.end(), has_begun), open.end());
        for (auto& meeting : open) {
            bool waits = false, lacks = false;
            for (auto& part : meeting->parts) {
                waits |= part && !part->stream && part->has_come;
                lacks |= part && part->stream && !part->has_come;
            }
            is |= waits && lacks;
        }
    }
    return is;
}

// A device works while its host does something else. Here streams go on by themselves only where another process waits.
void serve() {
    if (std::exchange(is_serving, true)) return;
    std::thread([] {
        for (bool has_work = true; has_work;) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            std::unique_lock<std::mutex> held(lock);
            if (has_ended) return;
            bool is_news = hear();
            if (Clocks::now() >= next_begin) next_begin = Time::max(), is_news = true;
            while (is_waited_for() && step()) {}
            if (is_news) tell_others();
            has_work = next_begin != Time::max();
            for (auto& [key, world] : worlds) has_work |= world->log != nullptr;
            is_serving = has_work;
        }
    }).detach();
}

// The last that is made is the first that is destroyed when the process ends.
struct End {
    ~End() {
        std::unique_lock<std::mutex> held(lock);
        has_ended = true;
    }
} end_of_process;

// The world of a unique id, which begins with the name of its log; null if there is none.
std::shared_ptr<World> world_of(const char* name) {
    uint64_t key = hash(name);
    auto& world = worlds[key];
    if (world) return world;
    auto log = Log::open(name);
    if (!log) return worlds.erase(key), nullptr;
    world = std::make_shared<World>();
    world->key = key;
    world->log = log;
    return world;
}

// The last one here no longer stands for anybody: other processes hear that it has left, or find that it has ended.
void close_comm(Comm& comm) {
    comm.is_open = false;
    if (comm.world && --comm.world->open_here == 0) comm.world->log = nullptr;
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
void slow_link(double seconds) { link_delay = std::chrono::duration<double>(seconds); }

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
    case REMOTE_ERROR: return "remote process exited or there was a network error";
    case IN_PROGRESS: return "operation in progress";
    default: return "unknown result code";
    }
}
// The handle says nothing.
const char* ncclGetLastError(void*) {
    LOCKED;
    return last_error.c_str();
}
int ncclGetUniqueId(UniqueId* id) {
    LOCKED;
    memset(id, 0, sizeof *id);
    auto log = Log::make();
    if (!log || log->name().size() >= sizeof *id) return SYSTEM_ERROR;
    memcpy(id, log->name().data(), log->name().size());
    auto world = std::make_shared<World>();
    world->key = hash(log->name());
    world->log = log;
    worlds[world->key] = world;
    return 0;
}
int ncclCommInitRankConfig(void** handle, int size, UniqueId id, int rank, const void* config) {
    LOCKED;
    id.bytes[sizeof id - 1] = 0;
    auto world = world_of(id.bytes);
    if (!world || size < 1 || rank < 0 || rank >= size || current < 0) return INVALID_ARGUMENT;
    hear();
    if (world->members.empty()) world->members.resize(size);
    if (world->size() != size || world->members[rank].device >= 0) return INVALID_ARGUMENT;
    world->log->stand_for(rank);
    say(*world, {Said::JOIN, rank, 0, 0, size, current, {}});
    join_world(*world, rank, {current, false, false, rank});
    world->open_here++;
    if (world->log) serve();
    return settled(held, *new_comm(handle, world, rank), is_blocking(config));
}
int ncclCommSplit(void* handle, int colour, int key, void** part, const void* config) {
    LOCKED;
    Comm* comm = find(handle);
    if (!comm || colour < NO_COLOR) return INVALID_ARGUMENT;
    if (int state = state_of(*comm)) return state == IN_PROGRESS ? INVALID_USAGE : state;
    World& world = *comm->world;
    uint64_t number = comm->splits++;
    *part = nullptr;
    Comm* wished = colour == NO_COLOR ? nullptr : new_comm(part, nullptr, 0);
    say(world, {Said::SPLIT, comm->rank, 0, number, colour, key, {}});
    wish(world, number, comm->rank, {colour, key}, wished);
    return *part ? settled(held, *find(*part), is_blocking(config)) : 0;
}
int ncclCommFinalize(void* handle) {
    LOCKED;
    return find(handle) ? 0 : INVALID_ARGUMENT;
}
int ncclCommDestroy(void* handle) {
    LOCKED;
    Comm* comm = find(handle);
    if (!comm) return INVALID_ARGUMENT;
    if (comm->world) say(*comm->world, {Said::LEAVE, comm->rank, 0, 0, 0, 0, {}});
    return close_comm(*comm), 0;
}
// What is on its way ends without a result.
int ncclCommAbort(void* handle) {
    LOCKED;
    Comm* comm = find(handle);
    if (!comm) return INVALID_ARGUMENT;
    comm->is_aborted = true;
    close_comm(*comm);
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
