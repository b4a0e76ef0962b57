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

void post(Stream& stream, Item item) {
    item.host = host;
    stream.queue.push_back(std::move(item));
    stream.posted++;
    tell_others();
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
    post(*stream, {name, std::move(work), nullptr, nullptr, {}});
    return 0;
}

std::shared_ptr<Mark> post_mark(Stream& stream) {
    auto mark = std::make_shared<Mark>();
    auto reach = [mark] {
        mark->seen = running.seen;
        mark->is_reached = true;
        return 0;
    };
    post(stream, {"record", reach, nullptr, nullptr, {}});
    return mark;
}

void post_wait(Stream& stream, std::shared_ptr<Mark> mark) {
    auto can_begin = [mark] { return mark->is_reached; };
    auto learn = [mark](Clock& seen) { join(seen, mark->seen); };
    post(stream, {"wait", nullptr, can_begin, learn, {}});
}

bool wait_for_others(std::unique_lock<std::mutex>& held) {
    return changed.wait_for(held, std::chrono::duration<double>(patience_seconds)) == std::cv_status::no_timeout;
}

void tell_others() { changed.notify_all(); }

static bool can_go_on(const Stream& stream) {
    if (stream.queue.empty() || devices[stream.device].error) return false;
    const Item& item = stream.queue.front();
    return !item.can_begin || item.can_begin();
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
    if (item.learn) item.learn(stream->seen);
    begin(item.name, stream->number, stream->time, stream->device, stream->seen);
    if (item.work)
        if (int code = item.work()) devices[stream->device].error = code;
    stream->done++;
    tell_others();
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
        if (wait_for_others(held)) continue;
        say_where_streams_stand();
        return devices[device].error = LAUNCH_TIMEOUT;
    }
    return 0;
}

} // namespace sim
