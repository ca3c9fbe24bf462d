/* A GenTL producer before genicam's simulated one: the same cameras, with a trigger input and a count of triggers.

   Everything is passed on but the registers of the trigger, the description that names them, the number of a frame and
   the wait for one: while TriggerMode is On a frame is given only after a pulse, numbered by the pulses since the
   acquisition began, so that a second pulse before the frame leaves a hole. Pulses are counted in a file that the test writes:
   uint64 pulses, uint64 number of the frame that arrives incomplete (0: none), uint64 unplugged. */

#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef int32_t GC_ERROR;
enum { OK = 0, ERR_TIMEOUT = -1011, ERR_IO = -1010, FRAMEID = 16, IS_INCOMPLETE = 7, NEW_BUFFER = 1 };
enum { TYPE_UINT64 = 8, TYPE_BOOL8 = 11 };
static const uint64_t REGISTERS = 0xE0000000u, DESCRIPTION = 0xD0000000u;

#define EACH_FORWARDED(DO) \
    DO(DSAllocAndAnnounceBuffer) DO(DSAnnounceBuffer) DO(DSAnnounceCompositeBuffer) DO(DSClose) DO(DSFlushQueue) \
    DO(DSGetBufferChunkData) DO(DSGetBufferID) DO(DSGetBufferInfoStacked) DO(DSGetBufferPartInfo) \
    DO(DSGetBufferPartInfoStacked) DO(DSGetBufferSegmentInfo) DO(DSGetFlowInfo) DO(DSGetInfo) \
    DO(DSGetNumBufferParts) DO(DSGetNumBufferSegments) DO(DSGetNumFlows) DO(DSGetParentDev) DO(DSQueueBuffer) \
    DO(DSRevokeBuffer) DO(DSStopAcquisition) DO(DevClose) DO(DevGetDataStreamID) \
    DO(DevGetInfo) DO(DevGetNumDataStreams) DO(DevGetParentIF) DO(DevGetPort) DO(DevOpenDataStream) DO(EventFlush) \
    DO(EventGetDataInfo) DO(EventGetInfo) DO(EventKill) DO(GCCloseLib) DO(GCGetInfo) DO(GCGetLastError) \
    DO(GCGetNumPortURLs) DO(GCGetPortInfo) DO(GCInitLib) DO(GCReadPortStacked) DO(GCUnregisterEvent) \
    DO(GCWritePortStacked) DO(IFClose) DO(IFGetDeviceID) DO(IFGetDeviceInfo) DO(IFGetInfo) DO(IFGetNumDevices) \
    DO(IFGetParentTL) DO(IFOpenDevice) DO(IFUpdateDeviceList) DO(TLClose) DO(TLGetInfo) DO(TLGetInterfaceID) \
    DO(TLGetInterfaceInfo) DO(TLGetNumInterfaces) DO(TLOpen) DO(TLOpenInterface) DO(TLUpdateInterfaceList)

#define FORWARD(name) \
    __attribute__((visibility("hidden"))) void *real_##name; \
    __asm__(".text\n.globl " #name "\n.type " #name ",@function\n" #name ":\n jmp *real_" #name "(%rip)\n");
EACH_FORWARDED(FORWARD)

static GC_ERROR (*real_read)(void *, uint64_t, void *, size_t *);
static GC_ERROR (*real_write)(void *, uint64_t, const void *, size_t *);
static GC_ERROR (*real_url)(void *, uint32_t, int32_t, int32_t *, void *, size_t *);
static GC_ERROR (*real_register)(void *, int32_t, void **);
static GC_ERROR (*real_data)(void *, void *, size_t *, uint64_t);
static GC_ERROR (*real_start)(void *, int32_t, uint64_t);
static GC_ERROR (*real_info)(void *, void *, int32_t, int32_t *, void *, size_t *);

static uint32_t registers[8];
static char *description;
static size_t description_size;
static volatile uint64_t *shared;
static uint64_t given, before;
static void *frames_event, *frames_stream;

__attribute__((constructor)) static void begin(void) {
    void *library = dlopen(getenv("TRIGGERED_PRODUCER"), RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        abort();
    }
#define RESOLVE(name) real_##name = dlsym(library, #name);
    EACH_FORWARDED(RESOLVE)
    *(void **)&real_read = dlsym(library, "GCReadPort");
    *(void **)&real_write = dlsym(library, "GCWritePort");
    *(void **)&real_url = dlsym(library, "GCGetPortURLInfo");
    *(void **)&real_register = dlsym(library, "GCRegisterEvent");
    *(void **)&real_data = dlsym(library, "EventGetData");
    *(void **)&real_info = dlsym(library, "DSGetBufferInfo");
    *(void **)&real_start = dlsym(library, "DSStartAcquisition");
    int file = open(getenv("TRIGGERED_DESCRIPTION"), O_RDONLY);
    struct stat status;
    fstat(file, &status);
    description_size = (size_t)status.st_size;
    description = mmap(NULL, description_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    file = open(getenv("TRIGGERED_PULSES"), O_RDWR);
    shared = mmap(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    given = shared[0];
}

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

GC_ERROR GCReadPort(void *port, uint64_t address, void *buffer, size_t *size) {
    if (shared[2])
        return ERR_IO;
    if (address >= DESCRIPTION && address + *size <= DESCRIPTION + description_size) {
        memcpy(buffer, description + (address - DESCRIPTION), *size);
        return OK;
    }
    if (address >= REGISTERS && address + *size <= REGISTERS + sizeof registers) {
        memcpy(buffer, (char *)registers + (address - REGISTERS), *size);
        return OK;
    }
    return real_read(port, address, buffer, size);
}

GC_ERROR GCWritePort(void *port, uint64_t address, const void *buffer, size_t *size) {
    if (address >= REGISTERS && address + *size <= REGISTERS + sizeof registers) {
        memcpy((char *)registers + (address - REGISTERS), buffer, *size);
        return OK;
    }
    return real_write(port, address, buffer, size);
}

GC_ERROR GCGetPortURLInfo(void *port, uint32_t index, int32_t command, int32_t *type, void *buffer, size_t *size) {
    char own[96], found[1024];
    size_t length = sizeof found;
    int32_t found_type;
    if (command != 0 || real_url(port, index, 0, &found_type, found, &length) != OK || !strstr(found, "Remotedevice"))
        return real_url(port, index, command, type, buffer, size);
    snprintf(own, sizeof own, "local:triggered.xml;%llx;%zx", (unsigned long long)DESCRIPTION, description_size);
    if (buffer != NULL && *size >= strlen(own) + 1)
        strcpy(buffer, own);
    *size = strlen(own) + 1;
    *type = found_type;
    return OK;
}

GC_ERROR GCGetPortURL(void *port, char *url, size_t *size) {
    int32_t type;
    return GCGetPortURLInfo(port, 0, 0, &type, url, size);
}

GC_ERROR GCRegisterEvent(void *module, int32_t event, void **handle) {
    GC_ERROR error = real_register(module, event, handle);
    if (error == OK && event == NEW_BUFFER)
        frames_event = *handle, frames_stream = module;
    return error;
}

GC_ERROR EventGetData(void *event, void *buffer, size_t *size, uint64_t timeout) {
    uint64_t until = now_ms() + timeout;
    for (;;) {
        uint64_t left = now_ms() < until ? until - now_ms() : 0;
        size_t length = *size;
        GC_ERROR error = real_data(event, buffer, &length, left);
        if (error != OK || event != frames_event || registers[1] == 0) {
            *size = length;
            given += error == OK && event == frames_event;
            return error;
        }
        if (shared[0] > given) {
            given = shared[0];
            *size = length;
            return OK;
        }
        ((GC_ERROR(*)(void *, void *))real_DSQueueBuffer)(frames_stream, *(void **)buffer);
        if (now_ms() >= until)
            return ERR_TIMEOUT;
    }
}

GC_ERROR DSStartAcquisition(void *stream, int32_t flags, uint64_t frames) {
    before = given = shared[0];
    return real_start(stream, flags, frames);
}

GC_ERROR DSGetBufferInfo(void *stream, void *buffer, int32_t command, int32_t *type, void *out, size_t *size) {
    if (command == FRAMEID && out != NULL && *size >= 8) {
        *(uint64_t *)out = given - before;
        *size = 8;
        *type = TYPE_UINT64;
        return OK;
    }
    if (command == IS_INCOMPLETE && out != NULL && shared[1] && shared[1] == given) {
        *(uint8_t *)out = 1;
        *size = 1;
        *type = TYPE_BOOL8;
        return OK;
    }
    return real_info(stream, buffer, command, type, out, size);
}
