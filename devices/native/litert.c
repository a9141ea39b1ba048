/* LiteRT (TensorFlow Lite) by TFLite's C interface, which is stable where LiteRT's own is not. */
#include "runtime.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct { float scale; int32_t zero; } Quantization;
/* Larger than TfLiteXNNPackDelegateOptions of any version; the first field is all we set. */
typedef struct { int32_t threads; char rest[508]; } DelegateOptions;

static void *lib, *lite, *input;
static char said[TEXT]; /* the runtime's first complaint; those that follow only repeat it */

/* The function `name`, of a type given where it is called. */
#define FN(result, name, ...) ((result(*)(__VA_ARGS__))dlsym(lib, "TfLite" name))

static void complain(void *unused, const char *format, va_list list) {
  (void)unused;
  if (!*said) vsnprintf(said, sizeof said, format, list);
}

static const char *reason(const char *what) {
  return because("%s%s%s", what, *said ? ": " : "", said);
}

/* TfLiteType, in its order. */
static const char *dtype_of(int type) {
  static const char *const names[] = {"none", "float32", "int32", "uint8", "int64", "str", "bool",
                                      "int16", "complex64", "int8", "float16", "float64"};
  return type >= 0 && type < (int)(sizeof names / sizeof *names) ? names[type] : "unknown";
}

static const char *open_library(void *library, const char **version) {
  lib = library;
  if (!dlsym(lib, "TfLiteVersion")) return because("it has no TfLiteVersion");
  *version = FN(const char *, "Version", void)();
  return NULL;
}

static const char *read_tensor(void *tensor, Tensor *out) {
  out->dtype = dtype_of(FN(int, "TensorType", void *)(tensor));
  out->rank = FN(int32_t, "TensorNumDims", void *)(tensor);
  if (out->rank > MAX_RANK) return because("it has a tensor of %d axes", out->rank);
  for (int axis = 0; axis < out->rank; axis++)
    out->shape[axis] = FN(int32_t, "TensorDim", void *, int32_t)(tensor, axis);
  out->data = FN(void *, "TensorData", void *)(tensor);
  return NULL;
}

/* An interpreter with XNNPACK, as the Python one has it of itself; NULL where it does not want. */
static void *interpreter(void *model, int threads, bool fast) {
  void *options = FN(void *, "InterpreterOptionsCreate", void)();
  FN(void, "InterpreterOptionsSetNumThreads", void *, int32_t)(options, threads);
  FN(void, "InterpreterOptionsSetErrorReporter", void *, void (*)(void *, const char *, va_list),
     void *)(options, complain, NULL);
  if (fast) {
    DelegateOptions wish = FN(DelegateOptions, "XNNPackDelegateOptionsDefault", void)();
    wish.threads = threads;
    void *delegate = FN(void *, "XNNPackDelegateCreate", const void *)(&wish);
    if (!delegate) return NULL;
    FN(void, "InterpreterOptionsAddDelegate", void *, void *)(options, delegate);
  }
  return FN(void *, "InterpreterCreate", const void *, const void *)(model, options);
}

static const char *load(const char *path, int threads, Model *about) {
  void *model = FN(void *, "ModelCreateFromFileWithErrorReporter", const char *,
                   void (*)(void *, const char *, va_list), void *)(path, complain, NULL);
  if (!model) return reason("it is no model");
  bool fast = dlsym(lib, "TfLiteXNNPackDelegateCreate") != NULL;
  if (fast && !(lite = interpreter(model, threads, true))) fast = false;
  if (!fast && !(lite = interpreter(model, threads, false))) return reason("no interpreter for it");
  snprintf(about->provider, sizeof about->provider, fast ? "cpu, XNNPACK" : "cpu");
  if (FN(int, "InterpreterAllocateTensors", void *)(lite)) return reason("no memory plan for it");
  about->inputs = FN(int32_t, "InterpreterGetInputTensorCount", void *)(lite);
  about->outputs = FN(int32_t, "InterpreterGetOutputTensorCount", void *)(lite);
  if (about->inputs < 1 || about->outputs < 1)
    return because("%d inputs and %d outputs, not 1", about->inputs, about->outputs);
  input = FN(void *, "InterpreterGetInputTensor", void *, int32_t)(lite, 0);
  void *output = FN(void *, "InterpreterGetOutputTensor", void *, int32_t)(lite, 0);
  const char *why = read_tensor(input, &about->takes);
  if (why) return why;
  Quantization how = FN(Quantization, "TensorQuantizationParams", void *)(output);
  about->scale = how.scale, about->zero = how.zero;
  /* Axes that are left open stand in the signature alone; older libraries do not tell it. */
  int (*axis_of)(void *, int32_t, int32_t *) =
      FN(int, "OpaqueTensorGetDimSignature", void *, int32_t, int32_t *);
  int (*rank_of)(void *, int32_t *) = FN(int, "OpaqueTensorGetNumDimsSignature", void *, int32_t *);
  int32_t rank = -1;
  if (axis_of && rank_of && !rank_of(input, &rank) && rank == about->takes.rank) {
    int shape[MAX_RANK];
    for (int axis = 0; axis < rank; axis++) {
      int32_t length = 0;
      shape[axis] = (int)about->takes.shape[axis];
      if (!axis_of(input, axis, &length) && length < 0) about->takes.shape[axis] = -1;
    }
    if (rank && about->takes.shape[0] == -1) {
      shape[0] = 1;
      if (FN(int, "InterpreterResizeInputTensor", void *, int32_t, const int *, int32_t)(
              lite, 0, shape, rank) ||
          FN(int, "InterpreterAllocateTensors", void *)(lite))
        return reason("it does not take one row");
    }
  }
  return NULL;
}

static const char *run(const Tensor *block, size_t bytes, Tensor *rows) {
  static int (*copy)(void *, const void *, size_t), (*invoke)(void *);
  static void *(*output_of)(void *, int32_t);
  if (!invoke) { /* looked up once: these are within what is timed */
    copy = FN(int, "TensorCopyFromBuffer", void *, const void *, size_t);
    output_of = FN(void *, "InterpreterGetOutputTensor", void *, int32_t);
    invoke = FN(int, "InterpreterInvoke", void *);
  }
  if (copy(input, block->data, bytes)) return reason("it takes another size of input");
  if (invoke(lite)) return reason("it fails");
  return read_tensor(output_of(lite, 0), rows);
}

const Runtime litert = {"litert", "libtensorflowlite_c.so", "HETERO_LITERT", open_library, load, run};
