#include "host_pool.h"

#include <ATen/Parallel.h>
#include <unistd.h>

namespace oekd {

HostPool::HostPool(int workers, int threads) : process_(getpid()) {
  // at::set_num_threads sets the calling thread, and what threads take that torch has not yet seen: the latter is
  // read and put back by threads of their own, so that the caller's setting is not touched.
  int inherited = 0;
  std::thread([&] { inherited = at::get_num_threads(); }).join();
  const auto put_back = [&] { std::thread([&] { at::set_num_threads(inherited); }).join(); };
  try {
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this, threads] { work(threads); });
    {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [&] { return ready_ == workers; });
    }
    put_back();
  } catch (...) {  // no more threads to be had: those that there are must end
    stop();
    put_back();
    throw;
  }
}

HostPool::~HostPool() { stop(); }

bool HostPool::lost_by_fork() const { return getpid() != process_; }

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
  const std::lock_guard call(calls_);
  std::unique_lock lock(mutex_);
  tasks_ = &tasks;
  next_ = 0;
  unfinished_ = tasks.size();
  wake_.notify_all();
  done_.wait(lock, [&] { return unfinished_ == 0; });
  tasks_ = nullptr;
}

void HostPool::work(int threads) {
  std::unique_lock lock(mutex_);  // from the start: setting the number is not safe in two threads at once
  at::get_num_threads();          // torch sees the thread; later it would overwrite the number set here
  at::set_num_threads(threads);
  ++ready_;
  done_.notify_one();
  for (;;) {
    wake_.wait(lock, [&] { return stopped_ || (tasks_ && next_ < tasks_->size()); });
    if (stopped_) return;
    const std::function<void()>& task = (*tasks_)[next_++];
    lock.unlock();
    task();
    lock.lock();
    if (--unfinished_ == 0) done_.notify_one();
  }
}

}  // namespace oekd
