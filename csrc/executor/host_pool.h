// A persistent pool of host threads, each with its own number of intra-op threads. It uses neither Python nor tensors.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "process.h"

namespace oekd {

class HostPool {
 public:
  // Both numbers are at least 1. Changes a setting of the process temporarily, so calls must not overlap. The GIL
  // ensures this.
  HostPool(int workers, int threads);
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;
  ~HostPool();

  // Starts the tasks in order and returns when all have finished. Tasks must not throw, and calls must not overlap.
  void run(const std::vector<std::function<void()>>& tasks);

  // Whether this is a child process. It has no copy of the threads, and a mutex may be locked forever, so the pool must
  // be released without destroying it.
  bool lost_by_fork() const;

 private:
  void stop();
  void work(int threads);

  const long process_;
  std::mutex mutex_;  // guards all members below
  std::condition_variable wake_, done_;
  const std::vector<std::function<void()>>* tasks_ = nullptr;
  size_t next_ = 0, unfinished_ = 0;
  int ready_ = 0;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace oekd
