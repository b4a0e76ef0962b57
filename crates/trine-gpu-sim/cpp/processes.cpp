// What ranks in several processes say to each other: a file that all append to and read.
//
// It begins with the number of its bytes that are whole, so a process that dies while it writes leaves nothing half.
// Locks on single bytes, far behind the end, belong to an open file: they go with its process.
#include "processes.hpp"
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <random>
#include <unistd.h>
#include <utility>

namespace sim {

namespace {

constexpr off_t TURN = off_t(1) << 40;  // who holds this byte reads or writes
constexpr off_t RANKS = off_t(1) << 41; // one byte for each rank
constexpr uint64_t START = sizeof(uint64_t);

struct Head {
    uint64_t sender, bytes;
};

struct flock byte_lock(short kind, off_t at) {
    struct flock wanted = {};
    wanted.l_type = kind;
    wanted.l_whence = SEEK_SET;
    wanted.l_start = at;
    wanted.l_len = 1;
    return wanted;
}

// Its life is a turn.
class Turn {
  public:
    explicit Turn(int file) : file(file) {
        struct flock wanted = byte_lock(F_WRLCK, TURN);
        while (fcntl(file, F_OFD_SETLKW, &wanted) != 0 && errno == EINTR) {}
    }
    ~Turn() {
        struct flock wanted = byte_lock(F_UNLCK, TURN);
        fcntl(file, F_OFD_SETLK, &wanted);
    }

  private:
    int file;
};

uint64_t whole_bytes(int file) {
    uint64_t bytes = 0;
    return pread(file, &bytes, sizeof bytes, 0) == ssize_t(sizeof bytes) ? bytes : START;
}

bool write_at(int file, const std::string& text, uint64_t at) {
    size_t done = 0;
    while (done < text.size()) {
        ssize_t wrote = pwrite(file, text.data() + done, text.size() - done, off_t(at + done));
        if (wrote <= 0) return false;
        done += size_t(wrote);
    }
    return true;
}

} // namespace

Log::Log(int file, std::string path, bool is_made)
    : file(file), path(std::move(path)), is_named(is_made), heard(START) {
    std::random_device random;
    sender = uint64_t(random()) << 32 | random();
}

std::shared_ptr<Log> Log::make() {
    for (const char* folder : {"/dev/shm", "/tmp"}) {
        std::string path = std::string(folder) + "/trine-gpu-sim-XXXXXX";
        int file = mkostemp(path.data(), O_CLOEXEC);
        if (file >= 0) return std::shared_ptr<Log>(new Log(file, path, true));
    }
    return nullptr;
}

std::shared_ptr<Log> Log::open(const std::string& name) {
    int file = ::open(name.c_str(), O_RDWR | O_CLOEXEC);
    return file < 0 ? nullptr : std::shared_ptr<Log>(new Log(file, name, false));
}

Log::~Log() {
    hide();
    close(file);
}

void Log::say(const std::string& message) {
    Head head = {sender, message.size()};
    std::string text(reinterpret_cast<const char*>(&head), sizeof head);
    text += message;
    Turn turn(file);
    uint64_t at = whole_bytes(file), end = at + text.size();
    if (write_at(file, text, at)) write_at(file, std::string(reinterpret_cast<const char*>(&end), sizeof end), 0);
}

std::vector<std::string> Log::hear() {
    std::vector<std::string> messages;
    if (whole_bytes(file) <= heard) return messages;
    std::string text;
    {
        Turn turn(file);
        text.resize(whole_bytes(file) - heard);
        size_t done = 0;
        while (done < text.size()) {
            ssize_t got = pread(file, text.data() + done, text.size() - done, off_t(heard + done));
            if (got <= 0) return messages;
            done += size_t(got);
        }
    }
    heard += text.size();
    for (size_t at = 0; at < text.size();) {
        Head head;
        memcpy(&head, text.data() + at, sizeof head);
        at += sizeof head;
        if (head.sender != sender) messages.push_back(text.substr(at, head.bytes));
        at += head.bytes;
    }
    return messages;
}

void Log::stand_for(int rank) {
    struct flock wanted = byte_lock(F_WRLCK, RANKS + rank);
    fcntl(file, F_OFD_SETLK, &wanted);
}

bool Log::is_there(int rank) const {
    struct flock wanted = byte_lock(F_WRLCK, RANKS + rank);
    return fcntl(file, F_OFD_GETLK, &wanted) != 0 || wanted.l_type != F_UNLCK;
}

void Log::hide() {
    if (std::exchange(is_named, false)) unlink(path.c_str());
}

} // namespace sim
