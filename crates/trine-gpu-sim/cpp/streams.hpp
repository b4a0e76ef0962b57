// Streams as lazy queues: nothing runs before the host waits, and then in an order drawn from a seed.
#pragma once
#include "order.hpp"
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>

namespace sim {

// A point in a stream: the operations before it, once it is reached.
struct Mark {
    bool is_reached = false;
    Clock seen;
};

struct Item {
    std::string name;
    std::function<int()> work;         // a code of the driver, which ends a context if it is not 0; may be empty
    std::function<bool()> can_begin;   // asked when all before it is done; empty: yes
    std::function<void(Clock&)> learn; // what it knows beside its stream and the host; may be empty
    Clock host;                        // what the host knew when it queued the item
};

struct Stream {
    int device;
    uint32_t number;
    bool is_open;
    std::deque<Item> queue;
    Clock seen;
    uint32_t time;     // operations that have begun
    uint64_t posted, done; // items
    uint32_t rank;     // the runnable stream of the highest rank goes on
};

struct Counters {
    uint64_t allocations, host_waits, launches, copies;
};

// Everything about streams and memory is done under this lock; a host that waits for other hosts gives it up.
extern std::mutex lock;
extern std::vector<std::unique_ptr<Stream>> streams;
extern Clock host; // what any thread of the host has waited for
extern std::minstd_rand random_source;
extern Counters counters;
extern double patience_seconds;

// The device whose context is current in this thread of the host; below 0 if none is.
extern thread_local int current;

Stream* make_stream(int device);
// The stream of a handle, unless it is closed or the default stream.
Stream* stream_of(void* handle);
// Queues the work of `function` on the stream of a handle; `name` is what reports call it. Returns a code of the driver.
int run_on(void* handle, const char* function, const std::string& name, std::function<int()> work);
void post(Stream& stream, Item item);
std::shared_ptr<Mark> post_mark(Stream& stream);
void post_wait(Stream& stream, std::shared_ptr<Mark> mark);
// Waits for another thread of the host to change something; false if none does for some seconds.
bool wait_for_others(std::unique_lock<std::mutex>& held);
// Tells threads that wait for this one.
void tell_others();
// Runs one item of any stream; false if none can go on.
bool step();
// Runs items until `is_done`. If nothing can go on for some seconds, it says where every stream stands.
int run_until(std::unique_lock<std::mutex>& held, int device, const std::function<bool()>& is_done);

} // namespace sim
