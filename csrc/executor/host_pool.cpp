#include "host_pool.h"

#include <ATen/Parallel.h>

#include <cstdio>
#include <cstdlib>

namespace oekd {

HostPool::HostPool(int workers, int threads) : process_(process_id()) {
  // at::set_num_threads sets the number of the calling thread and the default for threads that are new to torch. The
  // default is read and restored in new threads, which leaves the caller's number unchanged.
  int inherited = 0;
  std::thread([&] { inherited = at::get_num_threads(); }).join();
  const auto restore = [&] { std::thread([&] { at::set_num_threads(inherited); }).join(); };
  try {
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this, threads] { work(threads); });
    {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [&] { return ready_ == workers; });
    }
    restore();
  } catch (...) {  // no further thread could be started: end the others
    stop();
    restore();
    throw;
  }
}

HostPool::~HostPool() { stop(); }

bool HostPool::lost_by_fork() const { return process_id() != process_; }

void HostPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void HostPool::run(const std::vector<std::function<void()>>& tasks) {
  std::unique_lock lock(mutex_);
  tasks_ = &tasks;
  next_ = 0;
  unfinished_ = tasks.size();
  wake_.notify_all();
  done_.wait(lock, [&] { return unfinished_ == 0; });
  tasks_ = nullptr;
}

void HostPool::work(int threads) {
  std::unique_lock lock(mutex_);  // setting the number of threads is not thread-safe
  at::get_num_threads();          // first, because its first call in a thread sets the default number
  at::set_num_threads(threads);
  ++ready_;
  done_.notify_one();
  for (;;) {
    wake_.wait(lock, [&] { return stopped_ || (tasks_ && next_ < tasks_->size()); });
    if (stopped_) return;
    const std::function<void()>& task = (*tasks_)[next_++];
    lock.unlock();
    task();
    if (lost_by_fork()) {  // a student forked: the caller's thread is missing, and the mutex may be locked forever
      std::fputs("oekd_fast: a student forked this process and returned in it: expected os._exit\n", stderr);
      std::_Exit(1);
    }
    lock.lock();
    if (--unfinished_ == 0) done_.notify_one();
  }
}

}  // namespace oekd
