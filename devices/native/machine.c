/* What can be read of this machine: processor, system, clock, heat, load, memory. */
#include "runtime.h"

#include <ctype.h>
#include <fcntl.h>
#include <glob.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define CLOCKS "/sys/devices/system/cpu/cpu0/cpufreq/"

/* Processor features that decide which kernels run: as the kernel calls them, as the field does. */
static const char *const FEATURES[][2] = {
    {"avx2", 0}, {"avx512f", 0}, {"avx512_vnni", 0}, {"avx_vnni", 0}, {"avx512_bf16", 0},
    {"avx512_fp16", 0}, {"amx_int8", 0}, {"f16c", 0}, {"fma", 0}, {"neon", 0}, {"asimd", 0},
    {"asimddp", "dotprod"}, {"i8mm", 0}, {"asimdhp", "fp16"}, {"bf16", 0}, {"sve", 0}, {"sve2", 0}};

/* ARM's own cores by the number in /proc/cpuinfo, which has no name for them. */
static const struct { const char *part, *name; } CORES[] = {
    {"0xd03", "A53"}, {"0xd04", "A35"}, {"0xd05", "A55"}, {"0xd07", "A57"}, {"0xd08", "A72"},
    {"0xd09", "A73"}, {"0xd0a", "A75"}, {"0xd0b", "A76"}, {"0xd0d", "A77"}, {"0xd41", "A78"},
    {"0xd42", "A78AE"}, {"0xd46", "A510"}, {"0xd47", "A710"}};

/* A small file's text without its last line end, "" where it cannot be read. */
static char *text_of(const char *path, char *out, size_t size) {
  int handle = open(path, O_RDONLY | O_CLOEXEC);
  size_t got = 0;
  for (ssize_t n; handle >= 0 && got < size - 1 && (n = read(handle, out + got, size - 1 - got)) > 0;)
    got += (size_t)n;
  if (handle >= 0) close(handle);
  while (got && (!out[got - 1] || out[got - 1] == '\n' || out[got - 1] == ' ')) got--;
  out[got] = 0;
  return out;
}

/* The value of the first line "key : value", "" where there is none. */
static void value_of(const char *text, const char *key, char *out, size_t size) {
  size_t length = strlen(key);
  *out = 0;
  for (const char *line = text; line && *line;) {
    const char *colon = line + length;
    while (!strncmp(line, key, length) && (*colon == ' ' || *colon == '\t')) colon++;
    if (!strncmp(line, key, length) && *colon == ':') {
      for (colon++; *colon == ' '; colon++) {}
      snprintf(out, size, "%.*s", (int)strcspn(colon, "\n"), colon);
      return;
    }
    line = strchr(line, '\n');
    if (line) line++;
  }
}

static bool has_word(const char *words, const char *word) {
  size_t length = strlen(word);
  for (const char *at = words; (at = strstr(at, word)); at += length)
    if ((at == words || at[-1] == ' ') && (!at[length] || at[length] == ' ')) return true;
  return false;
}

void json_text(char *out, size_t size, const char *text) {
  char *end = out + size - 9; /* room for one escape, the last quote and the zero */
  *out++ = '"';
  for (; *text && out < end; text++) {
    unsigned char c = (unsigned char)*text;
    if (c == '"' || c == '\\') *out++ = '\\', *out++ = (char)c;
    else if (c < 32) out += sprintf(out, "\\u%04x", c);
    else *out++ = c < 127 ? (char)c : '?';
  }
  *out++ = '"', *out = 0;
}

void machine_json(char *out, size_t size) {
  static char info[1 << 16], flags[1 << 14];
  char cpu[256], part[64], maker[64], board[256], name[600], quoted[700], system[700], list[512] = "";
  struct utsname who;
  uname(&who);
  text_of("/proc/cpuinfo", info, sizeof info);
  value_of(info, "model name", cpu, sizeof cpu);
  value_of(info, "CPU part", part, sizeof part);
  value_of(info, "CPU implementer", maker, sizeof maker);
  for (size_t i = 0; !*cpu && !strcmp(maker, "0x41") && i < sizeof CORES / sizeof *CORES; i++)
    if (!strcmp(part, CORES[i].part)) snprintf(cpu, sizeof cpu, "Cortex-%s", CORES[i].name);
  if (!*cpu && *part) snprintf(cpu, sizeof cpu, "%s part %s", who.machine, part);
  if (!*cpu) snprintf(cpu, sizeof cpu, "%s", who.machine);
  text_of("/proc/device-tree/model", board, sizeof board);
  snprintf(name, sizeof name, "%s%s%s", board, *board ? ", " : "", cpu);
  json_text(quoted, sizeof quoted, name);
  value_of(info, "flags", flags, sizeof flags);
  if (!*flags) value_of(info, "Features", flags, sizeof flags);
  for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
    if (has_word(flags, FEATURES[i][0]))
      sprintf(list + strlen(list), "%s\"%s\"", *list ? ", " : "", FEATURES[i][1] ? FEATURES[i][1] : FEATURES[i][0]);
  snprintf(name, sizeof name, "%s %s %s", who.sysname, who.release, who.machine);
  json_text(system, sizeof system, name);
  snprintf(out, size, "\"cpu\": %s, \"cpus\": %ld, \"features\": [%s], \"system\": %s, \"python\": \"\"",
           quoted, sysconf(_SC_NPROCESSORS_ONLN), list, system);
}

void governor_json(char *out, size_t size) {
  char text[64];
  if (*text_of(CLOCKS "scaling_governor", text, sizeof text)) json_text(out, size, text);
  else snprintf(out, size, "null");
}

/* One more zone of a JSON object of temperatures. */
static void add_zone(char *zones, size_t size, const char *name, double heat_c) {
  char quoted[160];
  size_t used = strlen(zones);
  json_text(quoted, sizeof quoted, name);
  snprintf(zones + used, size - used, "%s%s: %.3f", used ? ", " : "", quoted, heat_c);
}

/* Android's own sensors: sysfs is closed there, but a service tells what the vendor measures. */
static void add_android_zones(char *zones, size_t size) {
  const char *tool = getenv("HETERO_DUMPSYS");
  char *call[] = {(char *)(tool ? tool : "/system/bin/dumpsys"), "thermalservice", NULL};
  extern char **environ;
  static char text[1 << 15];
  int ends[2], status;
  pid_t child;
  if (access(call[0], X_OK) || pipe(ends)) return;
  posix_spawn_file_actions_t streams;
  posix_spawn_file_actions_init(&streams);
  posix_spawn_file_actions_adddup2(&streams, ends[1], 1);
  posix_spawn_file_actions_addclose(&streams, ends[0]);
  posix_spawn_file_actions_addclose(&streams, ends[1]);
  bool began = !posix_spawn(&child, call[0], &streams, NULL, call, environ);
  close(ends[1]);
  size_t got = 0;
  for (ssize_t n; began && got < sizeof text - 1 && (n = read(ends[0], text + got, sizeof text - 1 - got)) > 0;)
    got += (size_t)n;
  close(ends[0]);
  if (began) waitpid(child, &status, 0);
  text[got] = 0;
  /* Temperature{mValue=38.0, mType=3, mName=SKIN, mStatus=0}, once cached and once as of now. */
  const char *at = strstr(text, "Current temperatures from HAL");
  for (at = at ? at : text; (at = strstr(at, "Temperature{mValue=")); at++) {
    char name[64];
    double heat;
    if (sscanf(at, "Temperature{mValue=%lf, mType=%*d, mName=%63[^,}]", &heat, name) == 2)
      add_zone(zones, size, name, heat);
  }
}

void telemetry_json(char *out, size_t size, bool thorough) {
  char zones[4096] = "", path[300], name[64], text[64], governor[80], clock[32] = "null";
  glob_t found;
  double load = 0;
  if (!glob("/sys/class/thermal/thermal_zone*", 0, NULL, &found))
    for (size_t i = 0; i < found.gl_pathc; i++) {
      snprintf(path, sizeof path, "%s/type", found.gl_pathv[i]);
      text_of(path, name, sizeof name);
      snprintf(path, sizeof path, "%s/temp", found.gl_pathv[i]);
      text_of(path, text, sizeof text);
      if (isdigit((unsigned char)text[*text == '-']))
        add_zone(zones, sizeof zones, *name ? name : found.gl_pathv[i], atoi(text) / 1000.0);
    }
  globfree(&found);
  if (thorough) add_android_zones(zones, sizeof zones);
  governor_json(governor, sizeof governor);
  if (isdigit((unsigned char)*text_of(CLOCKS "scaling_cur_freq", text, sizeof text)))
    snprintf(clock, sizeof clock, "%d", atoi(text) / 1000);
  if (getloadavg(&load, 1) < 1) load = 0;
  snprintf(out, size, "\"governor\": %s, \"clock_mhz\": %s, \"temperatures_c\": {%s}, \"load\": %.2f",
           governor, clock, zones, load);
}

/* The number of KiB that a line of a file of /proc names, in bytes; -1 where there is none. */
static int64_t proc_bytes(const char *path, const char *key) {
  static char text[1 << 14];
  char value[64];
  value_of(text_of(path, text, sizeof text), key, value, sizeof value);
  return *value ? atoll(value) * 1024 : -1;
}

int64_t peak_memory_bytes(void) {
  struct rusage used;
  int64_t peak = proc_bytes("/proc/self/status", "VmHWM");
  getrusage(RUSAGE_SELF, &used);
  return peak >= 0 ? peak : used.ru_maxrss * 1024;
}

int64_t memory_free_bytes(void) { return proc_bytes("/proc/meminfo", "MemAvailable"); }

int64_t switches(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_nivcsw;
}
