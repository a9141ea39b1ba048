/* ONNX Runtime by its C ABI: a table of functions whose order is frozen, so their places suffice. */
#include "runtime.h"

#include <dlfcn.h>
#include <string.h>

/* Places in OrtApi, all of them there since version 1 of the table. */
enum {
  GET_ERROR_MESSAGE = 2, CREATE_ENV = 3, CREATE_SESSION = 7, RUN = 9, CREATE_SESSION_OPTIONS = 10,
  SET_INTRA_OP_THREADS = 24, SET_INTER_OP_THREADS = 25, INPUT_COUNT = 30, OUTPUT_COUNT = 31,
  INPUT_TYPE = 33, INPUT_NAME = 36, OUTPUT_NAME = 37, TENSOR_OF_DATA = 49, TENSOR_DATA = 51,
  CAST_TO_TENSOR_INFO = 55, ELEMENT_TYPE = 60, RANK = 61, SHAPE = 62, SHAPE_OF_TENSOR = 65,
  CPU_MEMORY = 69, DEFAULT_ALLOCATOR = 78, RELEASE_STATUS = 93, RELEASE_VALUE = 96,
  RELEASE_TYPE = 98, RELEASE_SHAPE = 99,
};
enum { WARNINGS = 2, ARENA = 1, DEFAULT_MEMORY = 0 };

typedef struct { const void *const *(*get_api)(uint32_t); const char *(*version)(void); } Base;

static const void *const *api;
static void *environment, *session, *memory;
static char *input_name, *output_name;

/* ONNXTensorElementDataType, in its order. */
static const char *const DTYPES[] = {"undefined", "float32", "uint8", "int8", "uint16", "int16",
                                     "int32", "int64", "str", "bool", "float16", "float64"};
static const char *dtype_of(int type) {
  return type >= 0 && type < (int)(sizeof DTYPES / sizeof *DTYPES) ? DTYPES[type] : "unknown";
}
static int type_of(const char *dtype) {
  int type = 0;
  while (strcmp(DTYPES[type], dtype)) type++;
  return type;
}

/* A status of ONNX Runtime as a reason; NULL stays NULL. */
static const char *reason(void *status) {
  if (!status) return NULL;
  const char *text = because("%s", ((const char *(*)(void *))api[GET_ERROR_MESSAGE])(status));
  ((void (*)(void *))api[RELEASE_STATUS])(status);
  return text;
}

/* Call the function at a place; from a failure on, the function this stands in ends. */
#define CALL(place, types, ...)                                            \
  do {                                                                     \
    const char *why_ = reason(((void *(*)types)api[place])(__VA_ARGS__));  \
    if (why_) return why_;                                                 \
  } while (0)

static const char *open_library(void *library, const char **version) {
  const Base *(*base)(void) = (const Base *(*)(void))dlsym(library, "OrtGetApiBase");
  if (!base) return because("it has no OrtGetApiBase");
  if (!(api = base()->get_api(1))) return because("it offers no version 1 of its interface");
  *version = base()->version();
  CALL(CREATE_ENV, (int, const char *, void **), WARNINGS, "hetero", &environment);
  return NULL;
}

static const char *read_shape(void *info, Tensor *tensor) {
  int type = 0;
  size_t rank = 0;
  CALL(ELEMENT_TYPE, (const void *, int *), info, &type);
  CALL(RANK, (const void *, size_t *), info, &rank);
  tensor->dtype = dtype_of(type);
  tensor->rank = (int)rank;
  if (rank > MAX_RANK) return because("it has a tensor of %zu axes", rank);
  CALL(SHAPE, (const void *, int64_t *, size_t), info, tensor->shape, rank);
  return NULL;
}

static const char *load(const char *path, int threads, Model *model) {
  void *options = NULL, *type = NULL, *info = NULL, *allocator = NULL;
  size_t inputs = 0, outputs = 0;
  CALL(CREATE_SESSION_OPTIONS, (void **), &options);
  CALL(SET_INTRA_OP_THREADS, (void *, int), options, threads);
  CALL(SET_INTER_OP_THREADS, (void *, int), options, 1);
  CALL(CREATE_SESSION, (void *, const char *, void *, void **), environment, path, options, &session);
  CALL(INPUT_COUNT, (void *, size_t *), session, &inputs);
  CALL(OUTPUT_COUNT, (void *, size_t *), session, &outputs);
  model->inputs = (int)inputs, model->outputs = (int)outputs;
  if (!inputs || !outputs) return because("%zu inputs and %zu outputs, not 1", inputs, outputs);
  CALL(INPUT_TYPE, (void *, size_t, void **), session, 0, &type);
  CALL(CAST_TO_TENSOR_INFO, (void *, void **), type, &info);
  if (!info) return because("its input is no tensor");
  const char *why = read_shape(info, &model->takes);
  if (why) return why;
  ((void (*)(void *))api[RELEASE_TYPE])(type);
  CALL(DEFAULT_ALLOCATOR, (void **), &allocator);
  CALL(INPUT_NAME, (void *, size_t, void *, char **), session, 0, allocator, &input_name);
  CALL(OUTPUT_NAME, (void *, size_t, void *, char **), session, 0, allocator, &output_name);
  CALL(CPU_MEMORY, (int, int, void **), ARENA, DEFAULT_MEMORY, &memory);
  strcpy(model->provider, "CPUExecutionProvider");
  return NULL;
}

static const char *run(const Tensor *block, size_t bytes, Tensor *rows) {
  static void *last; /* lives until the next call: the rows are in it */
  void *input = NULL, *output = NULL, *info = NULL, *data = NULL;
  if (last) ((void (*)(void *))api[RELEASE_VALUE])(last), last = NULL;
  CALL(TENSOR_OF_DATA, (void *, void *, size_t, const int64_t *, size_t, int, void **), memory,
       (void *)block->data, bytes, block->shape, (size_t)block->rank, type_of(block->dtype), &input);
  const char *const names[] = {input_name, output_name};
  const char *why = reason(((void *(*)(void *, void *, const char *const *, void *const *, size_t,
                                       const char *const *, size_t, void **))api[RUN])(
      session, NULL, names, &input, 1, names + 1, 1, &output));
  ((void (*)(void *))api[RELEASE_VALUE])(input);
  if (why) return why;
  last = output;
  CALL(SHAPE_OF_TENSOR, (void *, void **), output, &info);
  why = read_shape(info, rows);
  ((void (*)(void *))api[RELEASE_SHAPE])(info);
  if (why) return why;
  CALL(TENSOR_DATA, (void *, void **), output, &data);
  rows->data = data;
  return NULL;
}

const Runtime onnxruntime = {"onnxruntime", "libonnxruntime.so", "HETERO_ONNXRUNTIME",
                             open_library, load, run};
