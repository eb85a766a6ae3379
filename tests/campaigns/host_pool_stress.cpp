// Random calls of the executor's thread pool from several threads, for ThreadSanitizer:
//
//     host_pool_stress ROUNDS SEED [race]
//
// Pools are used as StudentExecutor uses them: a call takes an idle pool or makes one, runs its tasks, and gives it
// back. Tasks raise, call another executor, and write memory that the caller reads without a lock, so that a missing
// synchronisation is a data race. Threads fail to start now and then. Prints what was done as JSON. With "race", tasks
// write to the same number, which must be reported.
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>

#include "executor/host_pool.h"

namespace {

constexpr int CALLERS = 4, THREADS_OF_THE_PROCESS = 7;

bool race = false;
int default_threads = THREADS_OF_THE_PROCESS;  // without a lock: the pool may not change it from two threads at once
thread_local int own_threads = 0;

thread_local int starts_before_failure = -1;  // of this thread; no failure if negative
std::atomic<int> calls{0}, tasks_done{0}, raised{0}, pools{0}, failed_starts{0};

void check(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "host_pool_stress: %s\n", what);
  std::exit(1);
}

}  // namespace

// Stands in for torch's number of intra-op threads, which belongs to a thread and has a default for new threads.
namespace at {
int get_num_threads() { return own_threads ? own_threads : own_threads = default_threads; }
void set_num_threads(int threads) { own_threads = default_threads = threads; }
}  // namespace at

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                              void* argument) {
  using Create = decltype(&pthread_create);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (starts_before_failure >= 0 && starts_before_failure-- == 0) return EAGAIN;
  return create(thread, attributes, start, argument);
}

namespace {

using Random = std::mt19937;

int up_to(Random& random, int most) { return static_cast<int>(random() % (most + 1)); }

class Executor {
 public:
  Executor(int workers, int threads, Executor* other) : workers_(workers), threads_(threads), other_(other) {}

  // Runs up to nine tasks and checks what they left.
  void call(Random& random) {
    const int count = up_to(random, 9), sleepy = up_to(random, 3);
    std::vector<int> runs(count), order;
    std::vector<std::exception_ptr> faults(count);
    std::vector<unsigned> seeds(count);
    for (unsigned& seed : seeds) seed = random();
    std::vector<std::function<void()>> tasks;
    for (int i = 0; i < count; ++i) {
      tasks.emplace_back([&, i] {
        if (workers_ == 1) order.push_back(i);
        check(at::get_num_threads() == threads_, "a worker has another number of threads");
        Random own(seeds[i]);
        for (int k = up_to(own, sleepy); k > 0; --k) std::this_thread::yield();
        try {
          if (other_ && up_to(own, 3) == 0) other_->call(own);
          if (up_to(own, 4) == 0) throw std::runtime_error(std::to_string(i));
        } catch (...) {
          faults[i] = std::current_exception();
        }
        ++runs[i];
      });
    }
    std::unique_ptr<oekd::HostPool> pool = take();
    pool->run(tasks);
    for (int i = 0; i < count; ++i) check(runs[i] == 1, "a task did not run once");
    for (size_t i = 0; i < order.size(); ++i) check(order[i] == static_cast<int>(i), "tasks did not start in order");
    for (const std::exception_ptr& fault : faults) raised += fault != nullptr;
    ++calls;
    tasks_done += count;
    if (race) {
      tasks.assign(2, [this] { ++planted_; });
      pool->run(tasks);
    }
    if (up_to(random, 15) == 0) return;  // ends the pool's threads
    const std::lock_guard lock(gil_);
    idle_.push_back(std::move(pool));
  }

 private:
  std::unique_ptr<oekd::HostPool> take() {
    const std::lock_guard lock(gil_);
    if (!idle_.empty()) {
      std::unique_ptr<oekd::HostPool> pool = std::move(idle_.back());
      idle_.pop_back();
      return pool;
    }
    const std::lock_guard one(making_);
    // The pool's first thread only reads the default number; one of the workers fails to start.
    if (pools++ % 3 == 2) {
      starts_before_failure = 1 + static_cast<int>(pools) % workers_;
      try {
        oekd::HostPool never(workers_, threads_);
        check(false, "no error although a thread did not start");
      } catch (const std::system_error&) {
        ++failed_starts;
      }
    }
    auto pool = std::make_unique<oekd::HostPool>(workers_, threads_);
    check(default_threads == THREADS_OF_THE_PROCESS, "the default number of threads has changed");
    return pool;
  }

  const int workers_, threads_;
  Executor* const other_;
  int planted_ = 0;
  std::mutex gil_;
  std::vector<std::unique_ptr<oekd::HostPool>> idle_;
  static std::mutex making_;  // as the GIL, for all executors
};
std::mutex Executor::making_;

}  // namespace

int main(int count, char** arguments) {
  const int rounds = std::atoi(arguments[1]);
  const unsigned seed = std::atoi(arguments[2]);
  race = count > 3;
  check(at::get_num_threads() == THREADS_OF_THE_PROCESS, "the process has another number of threads");
  Random random(seed);
  for (int round = 0; round < rounds; ++round) {
    Executor inner(1 + up_to(random, 2), 1, nullptr);
    Executor outer(1 + up_to(random, 3), 2, &inner);
    std::vector<std::thread> callers;
    for (int c = 0; c < CALLERS; ++c) {
      callers.emplace_back([&, from = random()] {
        Random own(from);
        for (int k = up_to(own, 7); k >= 0; --k) outer.call(own);
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  check(at::get_num_threads() == THREADS_OF_THE_PROCESS, "the caller's number of threads has changed");
  std::printf("{\"rounds\": %d, \"calls\": %d, \"tasks\": %d, \"raised\": %d, "
              "\"pools\": %d, \"failed_starts\": %d}\n",
              rounds, calls.load(), tasks_done.load(), raised.load(), pools.load(), failed_starts.load());
}
