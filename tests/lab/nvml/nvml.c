/* Copyright: (c) The gpufleet developers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * libnvidia-ml.so.1 over a state file: functions.def names the functions that are a look-up, the rest of this
 * file is what takes more than one (handles, memory, processes, settings).
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

#define API __attribute__((visibility("default")))
#define MAX_CLAIMS 1024

/* A handle outlives a change of the state: it is the device's UUID, looked up at each call. */
struct device {
    struct device *next;
    char uuid[96];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct device *devices;
static int initialised;

static int begin(void)
{
    pthread_mutex_lock(&lock);
    state_refresh();
    return initialised ? NVML_SUCCESS : NVML_UNINITIALIZED;
}

static int end(int result)
{
    pthread_mutex_unlock(&lock);
    return result;
}

/* NVML's result for a value: SUCCESS where it holds data. */
static int result_of(const char *value)
{
    if (!value)
        return NVML_NOT_SUPPORTED;
    if (*value == '!')
        return atoi(value + 1);
    if (!strcmp(value, "hang")) {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, NULL);  // of this thread; glibc before 2.32 has it too
        pthread_mutex_unlock(&lock);
        for (;;)
            sleep(3600);
    }
    return NVML_SUCCESS;
}

/* The answer to a call on a scope; a GPU's line `*` answers them all. */
static int answer(int scope, const char *key, const char *any, const char **value)
{
    *value = scope >= 0 ? state_value(scope - scope % MIG_SLOTS, "*", NULL) : NULL;
    if (!*value)
        *value = state_value(scope, key, any);
    return result_of(*value);
}

/* -- handles ------------------------------------------------------------------------------------------------------ */

/* What a device is called, whatever its calls answer. */
static int named(int scope, const char *key, const char *name)
{
    char own[96];
    const char *value = state_value(scope, key, NULL);
    return value && token(&value, own, sizeof own) && !strcasecmp(own, name);
}

static int handle_of(int scope, struct device **out)
{
    char uuid[96];
    const char *value;
    int result = answer(scope, "nvmlDeviceGetUUID", NULL, &value);
    if (result != NVML_SUCCESS)
        return result;
    token(&value, uuid, sizeof uuid);
    for (*out = devices; *out; *out = (*out)->next)
        if (!strcmp((*out)->uuid, uuid))
            return NVML_SUCCESS;
    *out = calloc(1, sizeof **out);
    if (!*out)
        return NVML_UNKNOWN;
    strcpy((*out)->uuid, uuid);
    (*out)->next = devices;
    devices = *out;
    return NVML_SUCCESS;
}

static int scope_of(const void *handle, int *scope)
{
    const struct device *d = devices;
    while (d && d != handle)
        d = d->next;
    if (!d)
        return NVML_INVALID_ARGUMENT;
    for (int i = 0; (*scope = state_scope(i)) >= 0; i++)
        if (named(*scope, "nvmlDeviceGetUUID", d->uuid))
            return NVML_SUCCESS;
    return NVML_GPU_IS_LOST;
}

static int visible(int scope)
{
    for (int i = 0, s; (s = state_visible(i)) >= 0; i++)
        if (s == scope - scope % MIG_SLOTS)
            return 1;
    return 0;
}

/* -- functions that are a look-up: functions.def ------------------------------------------------------------------ */

/* A signature is the C arguments in order:
 *   h      device handle: the first is whose answer it is, a further one counts in the key by its GPU's number
 *   n      number, counts in the key
 *   s      text: char pointer and its room
 *   {...}  pointer to a struct (or a plain number) of fields
 *            B H i Q  unsigned integer of 1, 2, 4, 8 bytes      V  version: the size of the caller's struct
 *            I        input of 4 bytes, counts in the key       sN char[N]       N(...) a struct, N times over
 *   #{...} number of elements (in: room, out: there are), and the array
 *   a      number of 64-bit words, and the words, zero where there is no more
 *   p      array of performance states and its size in bytes, 32 (unknown) where there is no more
 */
struct layout {
    const char *spec;
    char *base;         /* the caller's struct */
    size_t at, room;    /* the next byte; the caller's struct ends at room */
    const char **value; /* what to write, NULL to look for what counts in the key */
    char *key;
};

static size_t number(const char **spec)
{
    char *end;
    size_t n = strtoul(*spec, &end, 10);
    *spec = end;
    return n;
}

static size_t alignment(const char *spec)
{
    size_t widest = 1;
    for (int depth = 0; *spec && depth >= 0; spec++) {
        size_t width = strchr("iIV", *spec) ? 4 : *spec == 'Q' ? 8 : *spec == 'H' ? 2 : 1;
        depth += (*spec == '(') - (*spec == ')' || *spec == '}');
        widest = width > widest ? width : widest;
    }
    return widest;
}

static uint64_t integer(const char **value)
{
    char text[64] = "";
    token(value, text, sizeof text);
    return strtoull(text, NULL, 0);
}

static void add_argument(char *key, uint64_t argument)
{
    size_t n = strlen(key);
    int first = key[n - 1] != ']';
    snprintf(key + n - !first, 32, "%c%llu]", first ? '[' : ',', (unsigned long long)argument);
}

/* Walks the fields up to the closing bracket; what lies past the caller's struct is read and not written. */
static void fields(struct layout *l)
{
    size_t align = alignment(l->spec);
    for (; *l->spec && *l->spec != '}' && *l->spec != ')';) {
        char c = *l->spec++;
        size_t size = strchr("iIV", c) ? 4 : c == 'Q' ? 8 : c == 'H' ? 2 : 1;
        if (isdigit((unsigned char)c)) {
            l->spec--;
            size_t times = number(&l->spec);
            const char *group = ++l->spec;
            size_t inner = alignment(group);
            l->at = (l->at + inner - 1) / inner * inner;
            for (size_t i = 0; i < times; i++) {
                l->spec = group;
                fields(l);
            }
            l->spec++;
            continue;
        }
        if (c == 's')
            size = number(&l->spec);
        else
            l->at = (l->at + size - 1) / size * size;
        char *field = l->base + l->at;
        l->at += size;
        if (c == 'V') {
            l->room = *(uint32_t *)field & 0xffffff;
        } else if (c == 'I') {
            if (!l->value)
                add_argument(l->key, *(uint32_t *)field);
        } else if (l->value && c == 's') {
            char text[4096] = "";
            token(l->value, text, sizeof text);
            if (l->at <= l->room)
                memcpy(field, text, size);
        } else if (l->value) {
            uint64_t n = integer(l->value);
            if (l->at <= l->room)
                memcpy(field, &n, size); /* little-endian, as every NVIDIA host is */
        }
    }
    l->at = (l->at + align - 1) / align * align;
}

static int structure(const char **spec, char *base, const char **value, char *key)
{
    struct layout l = {.spec = *spec, .base = base, .room = SIZE_MAX, .value = value, .key = key};
    *spec = strchr(*spec, '}') + 1;
    if (!base)
        return NVML_INVALID_ARGUMENT;
    fields(&l);
    return l.room != SIZE_MAX && l.room > l.at ? NVML_VERSION_MISMATCH : NVML_SUCCESS;
}

static int array(const char **spec, uint32_t *count, char *base, const char **value)
{
    const char *element = *spec, *rest = *value;
    uint32_t there = 0, room = *count;
    static char scratch[8192];
    struct layout l = {.room = SIZE_MAX, .value = &rest, .base = scratch};
    *spec = strchr(*spec, '}') + 1;
    for (;; there++) {
        while (*rest == ' ')
            rest++;
        if (!*rest)
            break;
        l.spec = element;
        l.base = base && there < room ? base : scratch;
        l.at = l.base == base ? l.at : 0;
        fields(&l);
    }
    *count = there;
    return there > room ? NVML_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

/* One walk over the arguments: with no value it collects the key, with a value it writes the answer. */
static int arguments(const char *spec, const uintptr_t *a, const char **value, char *key, int *scope)
{
    int result = NVML_SUCCESS, subject = 1;
    while (*spec && result == NVML_SUCCESS) {
        int other;
        char text[4096] = "";
        switch (*spec++) {
        case 'h':
            result = value ? NVML_SUCCESS : scope_of((void *)*a, subject ? scope : &other);
            if (!value && !subject && result == NVML_SUCCESS)
                add_argument(key, (uint64_t)other / MIG_SLOTS);
            subject = 0;
            a++;
            break;
        case 'n':
            if (!value)
                add_argument(key, (uint32_t)*a);
            a++;
            break;
        case 's':
            if (value) {
                token(value, text, sizeof text);
                if (strlen(text) >= (uint32_t)a[1])
                    return NVML_INSUFFICIENT_SIZE;
                strcpy((char *)a[0], text);
            }
            a += 2;
            break;
        case '{':
            result = structure(&spec, (char *)*a++, value, key);
            break;
        case '#':
            spec++;
            if (value)
                result = array(&spec, (uint32_t *)a[0], (char *)a[1], value);
            else
                spec = strchr(spec, '}') + 1;
            a += 2;
            break;
        case 'a':
            for (uint32_t i = 0; value && i < (uint32_t)a[0]; i++)
                ((uint64_t *)a[1])[i] = integer(value);
            a += 2;
            break;
        case 'p':
            for (uint32_t i = 0; value && i < (uint32_t)a[1] / 4; i++)
                ((uint32_t *)a[0])[i] = token(value, text, sizeof text) ? (uint32_t)atoi(text) : 32;
            a += 2;
            break;
        }
    }
    return result;
}

static int look_up(const char *name, const char *spec, const uintptr_t *a)
{
    char key[256], any[256];
    const char *value;
    int scope = SCOPE_SYSTEM, result = begin();
    if (result != NVML_SUCCESS)
        return end(result);
    snprintf(key, sizeof key, "%s", name);
    snprintf(any, sizeof any, "%s[*]", name);
    result = arguments(spec, a, NULL, key, &scope);
    if (result == NVML_SUCCESS)
        result = answer(scope, key, any, &value);
    if (result == NVML_SUCCESS)
        result = arguments(spec, a, &value, key, &scope);
    return end(result);
}

/* Every argument of NVML is a pointer or an integer, so it comes in a register whatever its type. */
#define NVML(name, spec)                                                                                              \
    API int name(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t);                                   \
    int name(uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d, uintptr_t e, uintptr_t f)                            \
    {                                                                                                                 \
        return look_up(#name, spec, (uintptr_t[]){a, b, c, d, e, f});                                                 \
    }
#include "functions.def"

/* -- the library -------------------------------------------------------------------------------------------------- */

API int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    begin();
    state_look();
    const char *value = state_value(SCOPE_SYSTEM, "nvmlInit", NULL);
    int result = value ? result_of(value) : state_control();
    initialised += result == NVML_SUCCESS;
    return end(result);
}

API int nvmlInit(void) { return nvmlInitWithFlags(0); }

API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

API int nvmlShutdown(void)
{
    int result = begin();
    initialised -= result == NVML_SUCCESS;
    return end(result);
}

API const char *nvmlErrorString(int result)
{
    static const char *const text[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions",
        "Already Initialized", "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded",
        "Timeout", "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found",
        "Corrupted infoROM", "GPU is lost", "GPU requires reset",
        "GPU access blocked by the operating system", "Driver/library version mismatch", "In use by another client",
        "Insufficient Memory", "No data", "VGPU ECC not supported", "Insufficient Resources", "Freq not supported",
        "Argument version mismatch", "Deprecated", "System is not in ready state", "No GPUs found", "Invalid State",
    };
    return result >= 0 && result < (int)(sizeof text / sizeof *text) ? text[result] : "Unknown Error";
}

API int nvmlDeviceGetCount_v2(unsigned *count)
{
    int result = begin();
    for (*count = 0; result == NVML_SUCCESS && state_visible((int)*count) >= 0; ++*count)
        ;
    return end(result);
}

API int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **out)
{
    int result = begin(), scope = index < MAX_GPUS ? state_visible((int)index) : -1;
    if (result == NVML_SUCCESS)
        result = scope < 0 ? NVML_INVALID_ARGUMENT : handle_of(scope, out);
    return end(result);
}

API int nvmlDeviceGetHandleByIndex(unsigned index, struct device **out)
{
    return nvmlDeviceGetHandleByIndex_v2(index, out);
}

static int handle_by(const char *key, const char *name, struct device **out)
{
    int result = begin();
    if (result != NVML_SUCCESS)
        return end(result);
    for (int i = 0, scope; (scope = state_scope(i)) >= 0; i++)
        if (visible(scope) && named(scope, key, name))
            return end(handle_of(scope, out));
    return end(NVML_NOT_FOUND);
}

API int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **out)
{
    return handle_by("nvmlDeviceGetUUID", uuid, out);
}

API int nvmlDeviceGetHandleBySerial(const char *serial, struct device **out)
{
    return handle_by("nvmlDeviceGetSerial", serial, out);
}

API int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, struct device **out)
{
    unsigned domain = 0, bus, device, function = 0;
    char legacy[32];
    /* domain:bus:device.function, domain and function optional; busIdLegacy is the first field of the PCI info. */
    if (sscanf(bus_id, "%x:%x:%x.%x", &domain, &bus, &device, &function) < 3) {
        domain = function = 0;
        if (sscanf(bus_id, "%x:%x.%x", &bus, &device, &function) < 2)
            return NVML_INVALID_ARGUMENT;
    }
    snprintf(legacy, sizeof legacy, "%04X:%02X:%02X.%X", domain, bus, device, function);
    return handle_by("nvmlDeviceGetPciInfo_v3", legacy, out);
}

API int nvmlDeviceGetHandleByPciBusId(const char *bus_id, struct device **out)
{
    return nvmlDeviceGetHandleByPciBusId_v2(bus_id, out);
}

/* Begins a call on a handle: its scope, and what the state answers to `key`. */
static int begin_on(const struct device *handle, const char *key, int *scope, const char **value)
{
    int result = begin();
    if (result == NVML_SUCCESS)
        result = scope_of(handle, scope);
    return result == NVML_SUCCESS ? answer(*scope, key, NULL, value) : result;
}

API int nvmlDeviceGetIndex(struct device *handle, unsigned *index)
{
    int scope, result;
    const char *value;
    result = begin_on(handle, "nvmlDeviceGetMinorNumber", &scope, &value);
    for (int i = 0, s; result == NVML_SUCCESS; i++) {
        s = state_visible(i);
        if (s < 0)
            result = NVML_GPU_IS_LOST;
        else if (s == scope) {
            *index = (unsigned)i;
            break;
        }
    }
    return end(result);
}

/* -- memory and processes: the state, and the claims on it -------------------------------------------------------- */

static uint64_t claimed(int scope)
{
    struct claim claims[MAX_CLAIMS];
    uint64_t sum = 0;
    for (int i = state_claims(scope, claims, MAX_CLAIMS); i-- > 0;)
        sum += claims[i].bytes;
    return sum;
}

API int nvmlDeviceGetMemoryInfo(struct device *handle, uint64_t memory[3] /* total, free, used */)
{
    int scope;
    const char *value;
    int result = begin_on(handle, "nvmlDeviceGetMemoryInfo", &scope, &value);
    if (result == NVML_SUCCESS) {
        for (int i = 0; i < 3; i++)
            memory[i] = integer(&value);
        uint64_t claim = claimed(scope), taken = claim < memory[1] ? claim : memory[1];
        memory[1] -= taken;
        memory[2] += taken;
    }
    return end(result);
}

struct memory_v2 {
    uint32_t version;
    uint64_t total, reserved, free, used;
};

API int nvmlDeviceGetMemoryInfo_v2(struct device *handle, struct memory_v2 *memory)
{
    int scope;
    const char *value;
    int result = begin_on(handle, "nvmlDeviceGetMemoryInfo_v2", &scope, &value);
    if (result == NVML_SUCCESS && memory->version != (sizeof *memory | 2U << 24))
        result = NVML_VERSION_MISMATCH;
    if (result == NVML_SUCCESS) {
        memory->total = integer(&value);
        memory->reserved = integer(&value);
        memory->free = integer(&value);
        memory->used = integer(&value);
        uint64_t claim = claimed(scope), taken = claim < memory->free ? claim : memory->free;
        memory->free -= taken;
        memory->used += taken;
    }
    return end(result);
}

struct process {
    uint32_t pid;
    uint64_t bytes;
    uint32_t gpu_instance, compute_instance; /* not in version 1 */
};

static int processes(struct device *handle, const char *key, char type, uint32_t *count, char *out, size_t size)
{
    struct claim claims[MAX_CLAIMS];
    int scope;
    const char *value;
    uint32_t there = 0, room = out ? *count : 0, instance[2] = {UINT32_MAX, UINT32_MAX};
    int result = begin_on(handle, key, &scope, &value);
    if (result != NVML_SUCCESS)
        return end(result);
    if (scope % MIG_SLOTS) {
        static const char *const ids[] = {"nvmlDeviceGetGpuInstanceId", "nvmlDeviceGetComputeInstanceId"};
        for (int i = 0; i < 2; i++)
            if ((value = state_value(scope, ids[i], NULL)))
                instance[i] = (uint32_t)integer(&value);
    }
    for (int i = 0, n = state_claims(scope, claims, MAX_CLAIMS); i < n; i++) {
        struct process p;
        if (claims[i].type != type)
            continue;
        memset(&p, 0, sizeof p); /* the gap behind the PID, too */
        p.pid = (uint32_t)claims[i].pid;
        p.bytes = claims[i].bytes;
        p.gpu_instance = instance[0];
        p.compute_instance = instance[1];
        if (there < room)
            memcpy(out + there * size, &p, size);
        there++;
    }
    *count = there;
    return end(there > room ? NVML_INSUFFICIENT_SIZE : NVML_SUCCESS);
}

#define PROCESSES(kind, type)                                                                                         \
    API int nvmlDeviceGet##kind##RunningProcesses(struct device *h, uint32_t *count, char *out)                       \
    {                                                                                                                 \
        return processes(h, "nvmlDeviceGet" #kind "RunningProcesses_v3", type, count, out, 16);                       \
    }                                                                                                                 \
    API int nvmlDeviceGet##kind##RunningProcesses_v2(struct device *h, uint32_t *count, char *out)                    \
    {                                                                                                                 \
        return processes(h, "nvmlDeviceGet" #kind "RunningProcesses_v3", type, count, out, sizeof(struct process));   \
    }                                                                                                                 \
    API int nvmlDeviceGet##kind##RunningProcesses_v3(struct device *h, uint32_t *count, char *out)                    \
    {                                                                                                                 \
        return processes(h, "nvmlDeviceGet" #kind "RunningProcesses_v3", type, count, out, sizeof(struct process));   \
    }
PROCESSES(Compute, 'C')
PROCESSES(Graphics, 'G')
PROCESSES(MPSCompute, 'M')

API int nvmlSystemGetProcessName(unsigned pid, char *name, unsigned room)
{
    char file[64], command[4096];
    int result = begin();
    if (result != NVML_SUCCESS)
        return end(result);
    snprintf(file, sizeof file, "/proc/%u/cmdline", pid);
    FILE *f = fopen(file, "re");
    size_t n = f ? fread(command, 1, sizeof command - 1, f) : 0;
    if (f)
        fclose(f);
    command[n] = 0;
    if (n && room)
        snprintf(name, room, "%s", command);
    return end(!n ? NVML_NOT_FOUND : strlen(command) >= room ? NVML_INSUFFICIENT_SIZE : NVML_SUCCESS);
}

/* -- MIG devices ---------------------------------------------------------------------------------------------------- */

API int nvmlDeviceGetMigDeviceHandleByIndex(struct device *handle, unsigned index, struct device **out)
{
    int scope;
    const char *value;
    int result = begin_on(handle, "nvmlDeviceGetMaxMigDeviceCount", &scope, &value);
    if (result == NVML_SUCCESS && (scope % MIG_SLOTS || index >= integer(&value)))
        result = NVML_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS)
        result = handle_of(scope + 1 + (int)index, out);
    return end(result == NVML_NOT_SUPPORTED ? NVML_NOT_FOUND : result);
}

API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct device *handle, struct device **out)
{
    int scope, result = begin();
    if (result == NVML_SUCCESS)
        result = scope_of(handle, &scope);
    if (result == NVML_SUCCESS)
        result = scope % MIG_SLOTS ? handle_of(scope - scope % MIG_SLOTS, out) : NVML_INVALID_ARGUMENT;
    return end(result);
}

API int nvmlDeviceIsMigDeviceHandle(struct device *handle, unsigned *is_mig)
{
    int scope = 0, result = begin();
    if (result == NVML_SUCCESS)
        result = scope_of(handle, &scope);
    *is_mig = scope % MIG_SLOTS != 0;
    return end(result);
}

/* -- field values: nvmlDeviceGetFieldValues[id] or [id,scope] = type value ------------------------------------------ */

struct field {
    uint32_t id, scope;
    int64_t timestamp, latency; /* microseconds */
    uint32_t type, result;
    uint64_t value;
};

API int nvmlDeviceGetFieldValues(struct device *handle, int count, struct field *out)
{
    int scope, result = begin();
    if (result == NVML_SUCCESS)
        result = scope_of(handle, &scope);
    for (int i = 0; result == NVML_SUCCESS && i < count; i++) {
        char key[96], any[96];
        const char *value;
        struct timespec now;
        snprintf(key, sizeof key, "nvmlDeviceGetFieldValues[%u,%u]", out[i].id, out[i].scope);
        snprintf(any, sizeof any, "nvmlDeviceGetFieldValues[%u]", out[i].id);
        out[i].result = (uint32_t)answer(scope, key, any, &value);
        clock_gettime(CLOCK_REALTIME, &now);
        out[i].timestamp = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
        out[i].latency = 0;
        if (out[i].result == NVML_SUCCESS) {
            out[i].type = (uint32_t)integer(&value);
            out[i].value = integer(&value);
        } else if (out[i].result == NVML_GPU_IS_LOST) {
            result = NVML_GPU_IS_LOST;
        }
    }
    return end(result);
}

/* -- for the simulator's own tools: the words of any line, as a call on it would be answered -------------------------- */

API int nvidiaSimValue(struct device *handle, const char *key, char *out, unsigned room)
{
    int scope = SCOPE_SYSTEM, result = begin();
    const char *value;
    if (result == NVML_SUCCESS && handle)
        result = scope_of(handle, &scope);
    if (result == NVML_SUCCESS)
        result = answer(scope, key, NULL, &value);
    if (result == NVML_SUCCESS)
        snprintf(out, room, "%s", value);
    return end(result);
}

/* -- settings ------------------------------------------------------------------------------------------------------- */

static int set(struct device *handle, const char *key, unsigned number)
{
    int scope;
    const char *value;
    int result = begin_on(handle, key, &scope, &value);
    if (result == NVML_SUCCESS && integer(&value) != number)
        result = state_set(scope, key, number);
    return end(result);
}

API int nvmlDeviceSetPersistenceMode(struct device *handle, unsigned mode)
{
    return mode > 1 ? NVML_INVALID_ARGUMENT : set(handle, "nvmlDeviceGetPersistenceMode", mode);
}

API int nvmlDeviceSetComputeMode(struct device *handle, unsigned mode)
{
    return mode > 3 ? NVML_INVALID_ARGUMENT : set(handle, "nvmlDeviceGetComputeMode", mode);
}

API int nvmlDeviceSetPowerManagementLimit(struct device *handle, unsigned milliwatts)
{
    int result = set(handle, "nvmlDeviceGetPowerManagementLimit", milliwatts);
    return result == NVML_SUCCESS ? set(handle, "nvmlDeviceGetEnforcedPowerLimit", milliwatts) : result;
}
