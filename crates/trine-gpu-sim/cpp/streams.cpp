// Streams as lazy queues.
#include "streams.hpp"
#include "codes.hpp"
#include "memory.hpp"
#include "report.hpp"
#include <chrono>

namespace sim {

std::mutex lock;
std::vector<std::unique_ptr<Stream>> streams;
Clock host;
std::minstd_rand random_source;
Counters counters = {};
double patience_seconds = 5;
thread_local int current = -1;
static std::condition_variable changed;

// One item in so many makes its stream fall behind or come forward.
static constexpr uint32_t TURN = 6;

Stream* make_stream(int device) {
    uint32_t number = uint32_t(streams.size());
    streams.emplace_back(new Stream{device, number, true, {}, {}, 0, 0, 0, uint32_t(random_source())});
    return streams.back().get();
}

static void push(Stream& stream, Item item) {
    item.host = host;
    stream.queue.push_back(std::move(item));
    stream.posted++;
    changed.notify_all();
}

void post(Stream& stream, const std::string& name, std::function<int()> work) {
    push(stream, {name, std::move(work), nullptr, false, {}});
}

Stream* stream_of(void* handle) {
    for (auto& stream : streams)
        if (stream.get() == handle && stream->is_open) return stream.get();
    return nullptr;
}

int run_on(void* handle, const char* function, const std::string& name, std::function<int()> work) {
    Stream* stream = stream_of(handle);
    const char* what = !stream                      ? "the stream is closed, or the default stream"
                       : stream->device != current ? "the stream is of another device"
                                                   : nullptr;
    if (what) return report(std::string(function) + ": " + what), INVALID_HANDLE;
    post(*stream, name, std::move(work));
    return 0;
}

std::shared_ptr<Mark> post_mark(Stream& stream) {
    auto mark = std::make_shared<Mark>();
    push(stream, {"record", nullptr, mark, false, {}});
    return mark;
}

void post_wait(Stream& stream, std::shared_ptr<Mark> mark) {
    push(stream, {"wait", nullptr, std::move(mark), true, {}});
}

static bool can_go_on(const Stream& stream) {
    if (stream.queue.empty() || devices[stream.device].error) return false;
    const Item& item = stream.queue.front();
    return !item.waits || item.mark->is_reached;
}

// As long as ranks stay, one stream runs alone; a few changes of rank reach most orders that matter (Burckhardt et
// al. 2010, probabilistic concurrency testing).
static Stream* choose() {
    Stream* chosen = nullptr;
    for (auto& stream : streams)
        if (can_go_on(*stream) && (!chosen || stream->rank > chosen->rank)) chosen = stream.get();
    if (chosen && random_source() % TURN == 0) chosen->rank = uint32_t(random_source());
    return chosen;
}

bool step() {
    Stream* stream = choose();
    if (!stream) return false;
    Item item = std::move(stream->queue.front());
    stream->queue.pop_front();
    stream->time++;
    join(stream->seen, item.host);
    if (stream->seen.size() <= stream->number) stream->seen.resize(stream->number + 1);
    stream->seen[stream->number] = stream->time;
    if (item.waits) join(stream->seen, item.mark->seen);
    begin(item.name, stream->number, stream->time, stream->device, stream->seen);
    if (item.work) {
        if (int code = item.work()) devices[stream->device].error = code;
    } else if (!item.waits) {
        item.mark->seen = stream->seen;
        item.mark->is_reached = true;
    }
    stream->done++;
    changed.notify_all();
    return true;
}

static void say_where_streams_stand() {
    std::string text = "nothing goes on";
    for (auto& stream : streams)
        if (!stream->queue.empty())
            text += "; stream " + std::to_string(stream->number) + " stands before `" + stream->queue.front().name + "`";
    report(text);
}

int run_until(std::unique_lock<std::mutex>& held, int device, const std::function<bool()>& is_done) {
    while (!is_done()) {
        if (devices[device].error) return devices[device].error;
        if (step()) continue;
        // Another thread of the host may have more to queue.
        auto patience = std::chrono::duration<double>(patience_seconds);
        if (changed.wait_for(held, patience) == std::cv_status::no_timeout) continue;
        say_where_streams_stand();
        return devices[device].error = LAUNCH_TIMEOUT;
    }
    return 0;
}

} // namespace sim
