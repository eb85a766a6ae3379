// A persistent pool of host threads, each with its own number of intra-op threads. It knows neither Python nor tensors.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace oekd {

class HostPool {
 public:
  // Changes a setting of the whole process for a moment: calls must not overlap (the GIL sees to that).
  HostPool(int workers, int threads);
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;
  ~HostPool();

  // Starts the tasks in their order and returns when all have run; tasks do not throw. Callers wait for each other.
  void run(const std::vector<std::function<void()>>& tasks);

  // In a child process the threads are not there, and its mutexes are as they were: forget it without destroying it.
  bool lost_by_fork() const;

 private:
  void stop();
  void work(int threads);

  const pid_t process_;
  std::mutex calls_;
  std::mutex mutex_;  // all below
  std::condition_variable wake_, done_;
  const std::vector<std::function<void()>>* tasks_ = nullptr;
  size_t next_ = 0, unfinished_ = 0;
  int ready_ = 0;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace oekd
