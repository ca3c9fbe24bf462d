/* A CUDA driver of paper: its card's memory is the host's, and what is queued is done at once.
 *
 * It proves what is asked of a driver, in which order and in which context, and how answers are read; it says nothing of
 * what a card does. From the moment on when the file $PAPER_FAULT is there, copies fail as after a kernel's illegal
 * address, and so does all further work: as on a card, for as long as the process lives.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_CONTEXT = 201, NOT_FOUND = 500,
       ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900 };
#define DEPTH 16
#define LONGEST 32
/* One thing that is queued: a copy, or the network's work. */
struct work { void *to; const void *from; size_t size; void (*call)(void); };
struct graph { int length; struct work works[LONGEST]; };
static struct graph *captured;
static char primary, stream, event_;
static int initialised, lost;
static _Thread_local void *stack[DEPTH];
static _Thread_local int depth;
static size_t taken;
static const size_t TOTAL = 8ul << 30;

static int fails(void) {
    const char *fault = getenv("PAPER_FAULT");
    if (!depth) return INVALID_CONTEXT;
    if (!lost && fault && access(fault, F_OK) == 0) lost = ILLEGAL_ADDRESS;
    return lost;
}
static int works(void) { return depth ? lost : INVALID_CONTEXT; }
static int allocate(void **address, size_t size) {
    size_t *block;
    if (works()) return works();
    if (taken + size > TOTAL || !(block = malloc(size + 64))) return OUT_OF_MEMORY;
    *block = size;
    taken += size;
    memset(*address = (char *)block + 64, 0xEE, size);
    return OK;
}
static int release(void *address) {
    size_t *block = (size_t *)((char *)address - 64);
    if (works()) return works();
    taken -= *block;
    free(block);
    return OK;
}

static int queue(struct work work) {
    int code = fails();
    if (code) return code;
    if (captured) {
        if (captured->length == LONGEST) return OUT_OF_MEMORY;
        captured->works[captured->length++] = work;
    } else if (work.call) {
        work.call();
    } else {
        memcpy(work.to, work.from, work.size);
    }
    return OK;
}
/* How TensorRT of paper queues its network. */
int paper_queue(void (*call)(void)) { return queue((struct work){NULL, NULL, 0, call}); }

int cuInit(unsigned flags) { initialised = 1; return getenv("PAPER_NO_CARD") ? 100 : OK; }
int cuDriverGetVersion(int *version) { *version = 12080; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return initialised ? OK : NOT_INITIALIZED; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Paper RTX"); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = TOTAL; return OK; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 8 : 6; return OK; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { *available = TOTAL - taken; *total = TOTAL; return works(); }

int cuGetErrorName(int code, const char **text) { *text = code ? "CUDA_ERROR_OF_PAPER" : "CUDA_SUCCESS"; return OK; }
int cuGetErrorString(int code, const char **text) {
    *text = code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : code ? "paper fault" : "no error";
    return OK;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &primary; return OK; }
int cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
int cuCtxPushCurrent_v2(void *context) {
    if (depth == DEPTH) return OUT_OF_MEMORY;
    stack[depth++] = context;
    return OK;
}
int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    depth--;
    if (context) *context = stack[depth];
    return OK;
}
int cuCtxGetCurrent(void **context) { *context = depth ? stack[depth - 1] : NULL; return OK; }
int cuCtxSetCurrent(void *context) { depth = context ? 1 : 0; stack[0] = context; return OK; }
int cuCtxGetDevice(int *device) { *device = 0; return depth ? OK : INVALID_CONTEXT; }
int cuCtxSynchronize(void) { return works(); }
int cuCtxAttach(void **context, unsigned flags) { return cuCtxGetCurrent(context); }
int cuCtxDetach(void *context) { return OK; }

int cuStreamCreate(void **made, unsigned flags) { *made = &stream; return works(); }
int cuStreamDestroy_v2(void *which) { return works(); }
int cuStreamSynchronize(void *which) { return captured ? CAPTURE_UNSUPPORTED : works(); }
int cuStreamQuery(void *which) { return works(); }
int cuStreamBeginCapture_v2(void *which, int mode) {
    if (captured || which != &stream) return INVALID_VALUE;
    captured = calloc(1, sizeof *captured);
    return works();
}
int cuStreamEndCapture(void *which, void **graph) {
    if (!captured || which != &stream) return INVALID_VALUE;
    *graph = captured;
    captured = NULL;
    return works();
}
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    if (flags) return INVALID_VALUE;
    *made = memcpy(malloc(sizeof(struct graph)), graph, sizeof(struct graph));
    return works();
}
int cuGraphInstantiate(void **made, void *graph, unsigned long long flags) {
    return cuGraphInstantiateWithFlags(made, graph, flags);
}
int cuGraphDestroy(void *graph) { free(graph); return works(); }
int cuGraphExecDestroy(void *made) { free(made); return works(); }
int cuGraphLaunch(void *made, void *on) {
    struct graph *graph = made;
    int code = on == &stream ? OK : INVALID_VALUE;
    for (int n = 0; n < graph->length && !code; n++) code = queue(graph->works[n]);
    return code;
}

int cuEventCreate(void **made, unsigned flags) { *made = &event_; return works(); }
int cuEventDestroy_v2(void *which) { return works(); }
int cuEventRecord(void *which, void *on) { return works(); }
int cuEventSynchronize(void *which) { return works(); }
int cuEventQuery(void *which) { return works(); }
int cuEventElapsedTime(float *ms, void *start, void *end) { *ms = 0; return works(); }
int cuEventElapsedTime_v2(float *ms, void *start, void *end) { *ms = 0; return works(); }

int cuMemHostAlloc(void **address, size_t size, unsigned flags) { return allocate(address, size); }
int cuMemFreeHost(void *address) { return release(address); }
int cuMemAlloc_v2(void **address, size_t size) { return allocate(address, size); }
int cuMemFree_v2(void *address) { return release(address); }
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *on) {
    return on == &stream ? queue((struct work){to, from, size, NULL}) : INVALID_VALUE;
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *on) {
    return cuMemcpyHtoDAsync_v2(to, from, size, on);
}

/* cuda-python asks for every function by its name without the suffix. */
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long flags, int *status) {
    char newest[128];
    snprintf(newest, sizeof newest, "%s_v2", name);
    void *ourselves = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    *function = dlsym(ourselves, newest);
    if (!*function) *function = dlsym(ourselves, name);
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
