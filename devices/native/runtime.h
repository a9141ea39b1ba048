/* What the worker asks of a runtime, and the small helpers that its files share. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_RANK = 8, TEXT = 512 };

/* A tensor: of dtype names as NumPy has them; an axis that is left open is -1. */
typedef struct {
  const char *dtype;
  int rank;
  int64_t shape[MAX_RANK];
  const void *data;
} Tensor;

/* A loaded model: what it takes, and how its integer outputs are read (scale 0: not at all). */
typedef struct {
  int inputs, outputs;
  Tensor takes;
  float scale;
  int zero;
  char provider[64];
} Model;

/* One runtime, in a shared library that is opened when it is needed. Every function gives NULL, or
   the reason why not, in one buffer that the next failure writes over. */
typedef struct {
  const char *name;     /* as the job calls it */
  const char *library;  /* its file, found as the loader finds files ... */
  const char *variable; /* ... or named by this environment variable */
  const char *(*open)(void *library, const char **version);
  const char *(*load)(const char *path, int threads, Model *model);
  const char *(*run)(const Tensor *block, size_t bytes, Tensor *rows);
} Runtime;

extern const Runtime onnxruntime, litert;

/* `text` formatted into the one buffer for reasons, which is returned. */
const char *because(const char *text, ...) __attribute__((format(printf, 1, 2)));

/* The machine: JSON members of "hello" and of "telemetry", written into `out`. */
void machine_json(char *out, size_t size);
void telemetry_json(char *out, size_t size, bool thorough);
/* The governor as a JSON value. */
void governor_json(char *out, size_t size);
/* Peak memory of this process in bytes; its involuntary context switches so far. */
int64_t peak_memory_bytes(void);
int64_t switches(void);
int64_t memory_free_bytes(void);

/* `text` as a quoted JSON string; what does not fit or is no ASCII is left out or becomes "?". */
void json_text(char *out, size_t size, const char *text);
