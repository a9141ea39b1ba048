/* The far end in C, for where there is no Python: embeds the rows of one run folder, then times the
   model. It does what devices/_worker.py does, event by event; the protocol is described in
   devices/_protocol.py, and the same transcripts hold both.

       hetero-worker RUN              one run
       hetero-worker --probe FOLDER   one line about this machine, marked "probe", on stdout

   Needs nothing but libc; opens libonnxruntime.so or libtensorflowlite_c.so when a job asks for it.
   HETERO_ONNXRUNTIME and HETERO_LITERT name these libraries where the loader does not find them. */
#include "runtime.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define JSMN_STATIC
#define JSMN_STRICT
#include "jsmn.h"
#include "sha256.h"

enum { VERSION = 1, RESERVE_BYTES = 16384, LINE = 16384 };

static const Runtime *const RUNTIMES[] = {&onnxruntime, &litert, NULL};

/* -- the run: one process, one run folder, which is the working directory ------------------------ */

static struct {
  char *text; /* job.json, and its tokens */
  jsmntok_t tokens[256];
  int count;
} job;

static struct { double warmup_runs, warmup_s, min_runs, min_s, max_s, beat_s; } plan;
static const Runtime *runtime;
static Model model;
static Tensor block; /* the inputs of one call */
static int64_t rows_ordered, row_bytes, batch, dim;
static int inputs, out, lat, logfile;
static char *buffer, *fixed; /* one call's inputs: of row i, and of row 0 */
static float *row_buffer;    /* one call's rows */
static atomic_int_fast64_t rows, runs;
static _Atomic(const char *) phase = "load";

/* -- telling -------------------------------------------------------------------------------------- */

static int64_t now_ns(clockid_t clock) {
  struct timespec at;
  clock_gettime(clock, &at);
  return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

static int64_t began_ns;
static double seconds_since(int64_t start_ns) { return (double)(now_ns(CLOCK_MONOTONIC) - start_ns) / 1e9; }

/* Write every byte; a full disk takes a part first and refuses only the next time. */
static bool write_all(int handle, const void *data, size_t size) {
  for (const char *at = data; size;) {
    ssize_t n = write(handle, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    at += n, size -= (size_t)n;
  }
  return true;
}

/* Append one event to the log, from any thread; `members` is a format for its JSON members. */
static bool say(const char *event, const char *members, ...) __attribute__((format(printf, 2, 3)));
static bool say(const char *event, const char *members, ...) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static char line[LINE];
  static bool torn, looked;
  va_list list;
  pthread_mutex_lock(&lock);
  if (!looked) { /* a worker that was killed, or a full disk, may have left half a line */
    char last = '\n';
    off_t size = lseek(logfile, 0, SEEK_END);
    torn = size > 0 && pread(logfile, &last, 1, size - 1) == 1 && last != '\n';
    looked = true;
  }
  int n = snprintf(line, sizeof line, "%s{\"hetero\": \"%s\", \"t_s\": %.3f", torn ? "\n" : "", event,
                   seconds_since(began_ns));
  if (*members) n += snprintf(line + n, sizeof line - (size_t)n, ", ");
  va_start(list, members);
  n += vsnprintf(line + n, sizeof line - (size_t)n, members, list);
  va_end(list);
  if (n > LINE - 3) n = LINE - 3; /* cannot be: then the line is chatter to the host */
  memcpy(line + n, "}\n", 2);
  torn = !write_all(logfile, line, (size_t)n + 2);
  pthread_mutex_unlock(&lock);
  return !torn;
}

const char *because(const char *text, ...) {
  static char reason[TEXT], again[TEXT]; /* `text` may have the last reason among its arguments */
  va_list list;
  va_start(list, text);
  vsnprintf(again, sizeof again, text, list);
  va_end(list);
  /* In one line: runtimes tell stories. */
  char *to = reason;
  for (const char *from = again; *from; from++) {
    bool space = strchr(" \t\r\n\v\f", *from) != NULL;
    if (!space) *to++ = *from;
    else if (to > reason && to[-1] != ' ') *to++ = ' ';
  }
  while (to > reason && to[-1] == ' ') to--;
  *to = 0;
  return reason;
}

/* End for a foreseen reason: `kind` is for the host, the text for people. */
static _Noreturn void refuse(const char *kind, const char *text) {
  char quoted[6 * TEXT];
  unlink("reserve"); /* room for this, should the disk be full */
  json_text(quoted, sizeof quoted, text);
  say("error", "\"kind\": \"%s\", \"text\": %s", kind, quoted);
  exit(0);
}

/* End for a call of the system that failed. */
static _Noreturn void fail(const char *what) {
  const char *kind = errno == ENOSPC || errno == EDQUOT ? "disk-full"
                     : errno == ENOMEM                  ? "out-of-memory"
                                                        : "worker-failed";
  const char *text = because("%s: %s", what, strerror(errno));
  fprintf(stderr, "%s\n", text);
  refuse(kind, text);
}

/* End for something a runtime said, unless it said nothing. */
static void check(const char *kind, const char *what, const char *why) {
  if (!why) return;
  if (strstr(why, "std::bad_alloc")) refuse("out-of-memory", "not enough memory for this model");
  refuse(kind, because("%s%s", what, why));
}

static void tell(bool told) {
  if (!told) fail("log.jsonl");
}

static void must_go_on(void) {
  if (access("stop", F_OK)) return;
  unlink("reserve");
  tell(say("stopped", "\"rows\": %lld, \"runs\": %lld", (long long)rows, (long long)runs));
  exit(0);
}

static void *room(size_t size) {
  void *found = NULL;
  if (posix_memalign(&found, 64, size ? size : 1)) {
    errno = ENOMEM;
    fail("memory");
  }
  return found;
}

/* Say that we live, however long the runtime takes. */
static void *beat(void *unused) {
  char telemetry[6000];
  struct timespec pause = {(time_t)plan.beat_s, (long)((plan.beat_s - (double)(time_t)plan.beat_s) * 1e9)};
  (void)unused;
  for (;;) {
    nanosleep(&pause, NULL);
    say("beat", "\"phase\": \"%s\", \"rows\": %lld, \"runs\": %lld", phase, (long long)rows, (long long)runs);
    if (strcmp(phase, "measure")) continue;
    telemetry_json(telemetry, sizeof telemetry, false);
    say("telemetry", "%s", telemetry);
  }
  return NULL;
}

static void sense(void) {
  char telemetry[6000];
  telemetry_json(telemetry, sizeof telemetry, true);
  tell(say("telemetry", "%s", telemetry));
}

/* A runtime that crashes on a model leaves a trace on stderr. */
static void crashed(int number) {
  const char *name = number == SIGABRT ? "Aborted" : number == SIGSEGV ? "Segmentation fault"
                     : number == SIGBUS ? "Bus error" : number == SIGFPE ? "Floating-point exception"
                     : "Illegal instruction";
  write_all(2, "Fatal error: ", 13);
  write_all(2, name, strlen(name));
  write_all(2, "\n", 1);
  raise(number); /* now with its default, which ends us: see SA_RESETHAND */
}

static void watch_for_crashes(void) {
  static const int numbers[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  static char stack[65536]; /* its own: that of the program may have run over */
  stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
  struct sigaction action = {.sa_handler = crashed, .sa_flags = (int)(SA_RESETHAND | SA_NODEFER | SA_ONSTACK)};
  sigaltstack(&other, NULL);
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) sigaction(numbers[i], &action, NULL);
}

/* -- the order ------------------------------------------------------------------------------------ */

static char *read_text(const char *path) {
  int handle = open(path, O_RDONLY | O_CLOEXEC);
  struct stat about;
  if (handle < 0 || fstat(handle, &about)) fail(path);
  char *text = room((size_t)about.st_size + 1);
  for (off_t got = 0; got < about.st_size;) {
    ssize_t n = read(handle, text + got, (size_t)(about.st_size - got));
    if (n <= 0) fail(path);
    got += n;
  }
  text[about.st_size] = 0;
  close(handle);
  return text;
}

/* The token after the value at `at`, whatever is in it. */
static int after(int at) {
  int end = job.tokens[at].end;
  do at++;
  while (at < job.count && job.tokens[at].start < end);
  return at;
}

/* The token of a value of job.json, "model.file"; the job is refused when it has none. */
static int find(const char *path) {
  int at = 0;
  for (const char *key = path; *key;) {
    size_t length = strcspn(key, ".");
    int end = after(at), next = at + 1;
    if (job.tokens[at].type != JSMN_OBJECT) next = end;
    for (; next < end; next = after(next + 1)) {
      const jsmntok_t *name = &job.tokens[next];
      if ((size_t)(name->end - name->start) == length && !strncmp(job.text + name->start, key, length)) break;
    }
    if (next >= end) refuse("worker-failed", because("job.json has no %s", path));
    at = next + 1;
    key += length + (key[length] == '.');
  }
  return at;
}

static double number(int at) { return strtod(job.text + job.tokens[at].start, NULL); }

/* A string of the job, cut out where it stands: the names here need no escapes. */
static const char *string(const char *path) {
  int at = find(path);
  job.text[job.tokens[at].end] = 0;
  return job.text + job.tokens[at].start;
}

static void read_job(void) {
  jsmn_parser parser;
  jsmn_init(&parser);
  job.text = read_text("job.json");
  job.count = jsmn_parse(&parser, job.text, strlen(job.text), job.tokens, sizeof job.tokens / sizeof *job.tokens);
  if (job.count < 1) refuse("worker-failed", "job.json is no JSON, or too long");
  int version = (int)number(find("version"));
  if (version != VERSION) refuse("version", because("the job is of version %d, not %d", version, VERSION));
  const char *wanted = string("runtime");
  for (int i = 0; RUNTIMES[i]; i++)
    if (!strcmp(RUNTIMES[i]->name, wanted)) runtime = RUNTIMES[i];
  if (!runtime) refuse("runtime-missing", because("this worker has no runtime '%s'", wanted));
  plan.warmup_runs = number(find("plan.warmup_runs")), plan.warmup_s = number(find("plan.warmup_s"));
  plan.min_runs = number(find("plan.min_runs")), plan.min_s = number(find("plan.min_s"));
  plan.max_s = number(find("plan.max_s")), plan.beat_s = number(find("plan.beat_s"));
}

/* -- files ---------------------------------------------------------------------------------------- */

/* Hexadecimal SHA-256 of a file; of none, where it is not there. */
static void sha256_of(const char *path, char hex[65]) {
  static uint8_t part[1 << 16];
  Sha256 sha;
  sha256_init(&sha);
  int handle = open(path, O_RDONLY | O_CLOEXEC);
  for (ssize_t n; handle >= 0 && (n = read(handle, part, sizeof part)) > 0;) sha256_update(&sha, part, (size_t)n);
  if (handle >= 0) close(handle);
  sha256_finish(&sha, hex);
}

/* The path of a file of the job, once its content is known to be what the host meant. */
static const char *file(const char *path_of_name, const char *path_of_sha256) {
  char hex[65];
  const char *name = string(path_of_name);
  sha256_of(name, hex);
  if (strcmp(hex, string(path_of_sha256)))
    refuse("file-torn", because("%s is missing or not what was sent", name));
  return name;
}

/* Write our pid, locked as long as we live: two workers never share a folder. */
static void take_folder(void) {
  int handle = open("pid", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (handle < 0) fail("pid");
  if (flock(handle, LOCK_EX | LOCK_NB)) {
    /* Not by refuse(): what is in the folder is another's. */
    say("error", "\"kind\": \"busy\", \"text\": \"another worker is at work in this folder\"");
    exit(0);
  }
  char text[32];
  int n = snprintf(text, sizeof text, "%d\n", (int)getpid());
  if (ftruncate(handle, 0) || !write_all(handle, text, (size_t)n)) fail("pid");
}

static void take_reserve(void) {
  static char zeros[RESERVE_BYTES];
  int handle = open("reserve", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (handle < 0 || !write_all(handle, zeros, sizeof zeros)) fail("reserve");
  close(handle);
}

/* -- the model ------------------------------------------------------------------------------------ */

/* Open the library of a runtime; NULL, or why not. */
static const char *open_runtime(const Runtime *one, const char **version) {
  const char *named = getenv(one->variable);
  void *library = dlopen(named ? named : one->library, RTLD_NOW | RTLD_LOCAL);
  const char *why = library ? one->open(library, version) : dlerror();
  return why ? because("%s does not load (%s); run: export %s=/path/to/%s", one->library, why, one->variable, one->library)
             : NULL;
}

/* A shape as people read it: [None, 4, 4, 3], or as JSON with null. */
static const char *shape_text(const int64_t *shape, int rank, const char *open_axis, char out[256]) {
  int n = sprintf(out, "[");
  for (int axis = 0; axis < rank; axis++) {
    n += sprintf(out + n, "%s", axis ? ", " : "");
    n += shape[axis] < 0 ? sprintf(out + n, "%s", open_axis) : sprintf(out + n, "%lld", (long long)shape[axis]);
  }
  sprintf(out + n, "]");
  return out;
}

/* The inputs of one call into `to`; at the end the last row fills a fixed batch up. */
static void read_block(int64_t row, char *to) {
  for (int64_t i = 0; i < batch; i++) {
    int64_t from = row + i < rows_ordered ? row + i : rows_ordered - 1;
    if (pread(inputs, to + i * row_bytes, (size_t)row_bytes, from * row_bytes) != row_bytes) fail("inputs");
  }
}

/* IEEE half precision, of which there are few. */
static float from_half(uint16_t half) {
  int exponent = half >> 10 & 31, fraction = half & 1023;
  float size = exponent == 31  ? (fraction ? __builtin_nanf("") : __builtin_inff())
               : exponent == 0 ? (float)fraction * 0x1p-24f
                               : (float)(fraction + 1024) * __builtin_ldexpf(1, exponent - 25);
  return half & 0x8000 ? -size : size;
}

/* One number of an output as float32, integers by the file's own scale. */
static float number_at(const Tensor *t, int64_t i) {
  double code;
  if (!strcmp(t->dtype, "float32")) return ((const float *)t->data)[i];
  if (!strcmp(t->dtype, "float64")) return (float)((const double *)t->data)[i];
  if (!strcmp(t->dtype, "float16")) return from_half(((const uint16_t *)t->data)[i]);
  if (!strcmp(t->dtype, "int8")) code = ((const int8_t *)t->data)[i];
  else if (!strcmp(t->dtype, "uint8")) code = ((const uint8_t *)t->data)[i];
  else if (!strcmp(t->dtype, "int16")) code = ((const int16_t *)t->data)[i];
  else code = ((const int32_t *)t->data)[i];
  return ((float)code - (float)model.zero) * model.scale;
}

/* Run one call; its rows are in row_buffer then. Gives its time. */
static int64_t infer(const char *data, const char *kind, const char *what) {
  Tensor gives = {0};
  char shape[256];
  block.data = data;
  int64_t start = now_ns(CLOCK_MONOTONIC);
  const char *why = runtime->run(&block, (size_t)(row_bytes * batch), &gives);
  int64_t ns = now_ns(CLOCK_MONOTONIC) - start;
  check(kind, what, why);
  bool real = !strncmp(gives.dtype, "float", 5), coded = strstr("int8 uint8 int16 int32", gives.dtype) && model.scale != 0;
  if (gives.rank != 2 || gives.shape[0] != batch || !(real || coded))
    refuse("model-refused", because("it gives %s %s, expected float32 [%lld, dim]", gives.dtype,
                                    shape_text(gives.shape, gives.rank, "None", shape), (long long)batch));
  if (!row_buffer) dim = gives.shape[1], row_buffer = room((size_t)(batch * dim) * sizeof(float));
  if (gives.shape[1] != dim) refuse("run-failed", because("rows of %lld numbers, then of %lld", (long long)dim, (long long)gives.shape[1]));
  for (int64_t i = 0; i < batch * dim; i++) row_buffer[i] = number_at(&gives, i);
  return ns;
}

/* Cut both files to what is whole in both, and go on from there. */
static void resume(void) {
  out = open("out.bin", O_RDWR | O_CREAT | O_CLOEXEC, 0644), lat = open("lat.bin", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  struct stat of_out, of_lat;
  if (out < 0 || lat < 0 || fstat(out, &of_out) || fstat(lat, &of_lat)) fail("out.bin, lat.bin");
  int64_t times = of_lat.st_size / 8, whole = of_out.st_size / (4 * dim);
  if (whole > times) whole = times;
  if (whole > rows_ordered) whole = rows_ordered;
  rows = whole == rows_ordered ? whole : whole - whole % batch;
  runs = whole == rows_ordered ? times - rows_ordered : 0;
  if (ftruncate(out, rows * 4 * dim) || ftruncate(lat, (rows + runs) * 8)) fail("out.bin, lat.bin");
  lseek(out, 0, SEEK_END), lseek(lat, 0, SEEK_END);
}

/* Runtime, inputs, model, and the first inference of all. */
static void load(void) {
  char machine[4096], governor[80], provider[100], shape[256], given[256];
  const char *version = "";
  int threads = (int)number(find("threads"));
  int64_t start = now_ns(CLOCK_MONOTONIC);
  check("runtime-missing", "", open_runtime(runtime, &version));
  int64_t import_ns = now_ns(CLOCK_MONOTONIC) - start;
  machine_json(machine, sizeof machine);
  governor_json(governor, sizeof governor);
  tell(say("hello", "\"version\": %d, \"worker\": \"native\", \"pid\": %d, \"numpy\": \"\", \"runtime\": \"%s\", "
           "\"runtime_version\": \"%s\", \"threads\": %d, %s, \"governor\": %s", VERSION, (int)getpid(), runtime->name,
           version, threads, machine, governor));
  const char *path = file("model.file", "model.sha256");
  int at = find("inputs.shape"), rank = job.tokens[at].size;
  const char *dtype = string("inputs.dtype");
  if (rank < 1 || rank > MAX_RANK) refuse("input-mismatch", because("the inputs have %d axes", rank));
  block = (Tensor){.dtype = dtype, .rank = rank};
  for (int axis = 0; axis < rank; axis++) block.shape[axis] = (int64_t)number(at + 1 + axis);
  inputs = open(file("inputs.file", "inputs.sha256"), O_RDONLY | O_CLOEXEC);
  if (inputs < 0) fail("inputs");
  rows_ordered = block.shape[0], row_bytes = strcmp(dtype, "float32") ? 1 : 4;
  for (int axis = 1; axis < rank; axis++) row_bytes *= block.shape[axis];
  start = now_ns(CLOCK_MONOTONIC);
  check("model-refused", "", runtime->load(path, threads, &model));
  int64_t load_ns = now_ns(CLOCK_MONOTONIC) - start;
  const Tensor *takes = &model.takes;
  json_text(provider, sizeof provider, model.provider);
  tell(say("ready", "\"provider\": %s, \"input_dtype\": \"%s\", \"input_shape\": %s, \"import_ns\": %lld, \"load_ns\": %lld",
           provider, takes->dtype, shape_text(takes->shape, takes->rank, "null", shape), (long long)import_ns, (long long)load_ns));
  if (model.inputs != 1 || model.outputs != 1)
    refuse("model-refused", because("%d inputs and %d outputs, not 1", model.inputs, model.outputs));
  bool fits = takes->rank == rank && !strcmp(takes->dtype, dtype);
  for (int axis = 1; fits && axis < rank; axis++) fits = takes->shape[axis] < 0 || takes->shape[axis] == block.shape[axis];
  block.shape[0] = 1;
  if (!fits)
    refuse("input-mismatch", because("it takes %s %s, the inputs are %s %s", takes->dtype,
                                     shape_text(takes->shape, takes->rank, "None", shape), dtype,
                                     shape_text(block.shape, rank, "", given)));
  batch = block.shape[0] = takes->shape[0] > 0 ? takes->shape[0] : 1;
  buffer = room((size_t)(row_bytes * batch)), fixed = room((size_t)(row_bytes * batch));
  read_block(0, fixed);
  int64_t ns = infer(fixed, "model-refused", "it loads but does not run: ");
  resume();
  tell(say("first", "\"ns\": %lld, \"dim\": %lld, \"batch\": %lld, \"start\": %lld, \"runs\": %lld", (long long)ns,
           (long long)dim, (long long)batch, (long long)rows, (long long)runs));
}

/* Every row that is not there yet: its bytes, then its time, then its event. */
static void embed(void) {
  char what[64];
  phase = "embed";
  for (int64_t row = rows; row < rows_ordered; row += batch) {
    must_go_on();
    read_block(row, buffer);
    snprintf(what, sizeof what, "row %lld: ", (long long)row);
    int64_t ns = infer(buffer, "run-failed", what);
    int64_t count = batch < rows_ordered - row ? batch : rows_ordered - row;
    if (!write_all(out, row_buffer, (size_t)(count * dim * 4))) fail("out.bin");
    for (int64_t i = 0; i < count; i++)
      if (!write_all(lat, &ns, sizeof ns)) fail("lat.bin");
    rows = row + count;
    tell(say("run", "\"i\": %lld, \"n\": %lld, \"ns\": %lld", (long long)row, (long long)count, (long long)ns));
  }
}

/* Whether another run of the fixed input is due. */
static bool unfinished(int64_t done, double spent_s, double least_runs, double least_s) {
  must_go_on();
  return ((double)done < least_runs || spent_s < least_s) && spent_s < plan.max_s;
}

/* Run the fixed input, and nothing else; its time. */
static int64_t run_fixed(void) {
  Tensor gives;
  block.data = fixed;
  int64_t start = now_ns(CLOCK_MONOTONIC);
  const char *why = runtime->run(&block, (size_t)(row_bytes * batch), &gives);
  int64_t ns = now_ns(CLOCK_MONOTONIC) - start;
  check("run-failed", "measuring: ", why);
  return ns;
}

/* Warm up, then time one fixed input; what may have disturbed it goes into `disturbances`. */
static void measure(char *disturbances, size_t size) {
  snprintf(disturbances, size, "\"switches\": null, \"cpu_share\": null, \"measured\": 0");
  if (plan.min_runs == 0 && plan.min_s == 0) return;
  int64_t warm = 0, start = now_ns(CLOCK_MONOTONIC), spent_ns = 0, kept = runs;
  phase = "warm";
  for (; unfinished(warm, seconds_since(start), plan.warmup_runs, plan.warmup_s); warm++) run_fixed();
  for (int64_t i = 0, ns; i < kept; i++) {
    if (pread(lat, &ns, sizeof ns, (rows_ordered + i) * 8) != sizeof ns) fail("lat.bin");
    spent_ns += ns;
  }
  tell(say("bench", "\"warmup_runs\": %lld, \"runs\": %lld", (long long)warm, (long long)kept));
  sense();
  phase = "measure";
  int64_t cpu = now_ns(CLOCK_THREAD_CPUTIME_ID), wall = now_ns(CLOCK_MONOTONIC), switched = switches();
  while (unfinished(runs, (double)spent_ns / 1e9, plan.min_runs, plan.min_s)) {
    int64_t ns = run_fixed();
    if (!write_all(lat, &ns, sizeof ns)) fail("lat.bin");
    runs++;
    spent_ns += ns;
  }
  cpu = now_ns(CLOCK_THREAD_CPUTIME_ID) - cpu, wall = now_ns(CLOCK_MONOTONIC) - wall;
  switched = switches() - switched;
  phase = "finish";
  sense();
  snprintf(disturbances, size, "\"switches\": %lld, \"cpu_share\": %.6f, \"measured\": %lld", (long long)switched,
           cpu < wall ? (double)cpu / (double)wall : 1.0, (long long)(runs - kept));
}

/* Make the files last, and sign them with their hashes. */
static void finish(const char *disturbances) {
  char of_out[65], of_lat[65];
  if (fsync(out) || fsync(lat)) fail("out.bin, lat.bin");
  sha256_of("out.bin", of_out), sha256_of("lat.bin", of_lat);
  tell(say("done", "\"rows\": %lld, \"dim\": %lld, \"runs\": %lld, \"out_bytes\": %lld, \"out_sha256\": \"%s\", "
           "\"lat_bytes\": %lld, \"lat_sha256\": \"%s\", \"peak_memory_bytes\": %lld, %s", (long long)rows,
           (long long)dim, (long long)runs, (long long)(rows * dim * 4), of_out, (long long)((rows + runs) * 8), of_lat,
           (long long)peak_memory_bytes(), disturbances));
  unlink("reserve");
}

/* Print what this machine is and has. */
static void probe(const char *program, const char *folder) {
  char machine[4096], telemetry[6000], quoted[6 * TEXT];
  struct statvfs disk;
  json_text(quoted, sizeof quoted, program);
  printf("\n{\"hetero\": \"probe\", \"version\": %d, \"worker\": \"native\", \"executable\": %s", VERSION, quoted);
  for (int i = 0; RUNTIMES[i]; i++) {
    const char *version = "", *why = open_runtime(RUNTIMES[i], &version);
    printf(", \"%s\": \"%s\"", RUNTIMES[i]->name, why ? "" : version);
    json_text(quoted, sizeof quoted, why ? why : "");
    if (why) printf(", \"%s_missing\": %s", RUNTIMES[i]->name, quoted);
  }
  int64_t memory = memory_free_bytes();
  if (memory >= 0) printf(", \"memory_free_bytes\": %lld", (long long)memory);
  else printf(", \"memory_free_bytes\": null");
  if (!statvfs(folder, &disk)) printf(", \"disk_free_bytes\": %lld", (long long)disk.f_bavail * (long long)disk.f_frsize);
  else printf(", \"disk_free_bytes\": null");
  machine_json(machine, sizeof machine);
  telemetry_json(telemetry, sizeof telemetry, true);
  printf(", %s, %s}\n", machine, telemetry);
}

int main(int count, char **words) {
  char disturbances[128];
  pthread_t heart;
  setenv("ORT_DISABLE_TELEMETRY", "1", 1); /* from 1.29 on it writes a device id and reports home otherwise */
  began_ns = now_ns(CLOCK_MONOTONIC);
  if (count == 3 && !strcmp(words[1], "--probe")) return probe(words[0], words[2]), 0;
  if (count != 2 || chdir(words[1])) {
    fprintf(stderr, "usage: hetero-worker RUN, a folder with a job.json, or: hetero-worker --probe FOLDER\n");
    return 2;
  }
  if ((logfile = open("log.jsonl", O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) < 0) {
    perror("log.jsonl");
    return 2;
  }
  watch_for_crashes();
  take_folder();
  take_reserve();
  read_job();
  pthread_create(&heart, NULL, beat, NULL);
  must_go_on();
  load();
  embed();
  measure(disturbances, sizeof disturbances);
  finish(disturbances);
  _exit(0); /* not through the runtimes' own ends, which may wait for their threads */
}
