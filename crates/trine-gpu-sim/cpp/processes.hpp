// What ranks in several processes say to each other: a file that all append to and read.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace sim {

class Log {
  public:
    // A new one; null if no file can be made.
    static std::shared_ptr<Log> make();
    // The one of this name; null if there is none.
    static std::shared_ptr<Log> open(const std::string& name);
    ~Log();
    const std::string& name() const { return path; }
    void say(const std::string& message);
    // What other processes have said since the last call.
    std::vector<std::string> hear();
    // This process stands for `rank` until it ends, however it ends.
    void stand_for(int rank);
    // Whether some process, other than this one, stands for `rank`.
    bool is_there(int rank) const;
    // All have come: the file's name goes.
    void hide();

  private:
    Log(int file, std::string path, bool is_made);
    int file;
    std::string path;
    bool is_named;   // this one has made the name, which is still there
    uint64_t sender; // what tells its own messages from others'
    uint64_t heard;  // bytes
};

} // namespace sim
