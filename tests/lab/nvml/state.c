/* Copyright: (c) The gpufleet developers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The state of the simulated host: /etc/nvidia-sim/state, the claims beside it, and the device nodes.
 * NVIDIA_SIM_ROOT is a prefix to all three.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim.h"

struct line {
    int scope;
    const char *key, *value;
};

static char *text;
static struct line *lines;
static size_t line_count;
static int scopes[MAX_GPUS * 8], scope_count;
static int visible[MAX_GPUS], visible_count;
static struct statx seen;

static const char *path(char out[PATH_MAX], const char *name)
{
    const char *root = getenv("NVIDIA_SIM_ROOT");
    snprintf(out, PATH_MAX, "%s%s", root ? root : "", name);
    return out;
}

static int may_open(const char *name)
{
    char file[PATH_MAX];
    int fd = open(path(file, name), O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    /* A node that the kernel lets us open says ENXIO here: the driver behind it is what we simulate. */
    return fd >= 0 || errno == ENXIO ? 0 : errno;
}

static char *trim(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    for (char *end = s + strlen(s); end > s && isspace((unsigned char)end[-1]); *--end = 0)
        ;
    return s;
}

static int section(const char *name)
{
    int gpu, mig;
    if (sscanf(name, "[device %d]", &gpu) == 1 && gpu >= 0 && gpu < MAX_GPUS)
        return gpu * MIG_SLOTS;
    if (sscanf(name, "[mig %d.%d]", &gpu, &mig) == 2 && gpu >= 0 && gpu < MAX_GPUS && mig >= 0 && mig < MIG_SLOTS - 1)
        return gpu * MIG_SLOTS + 1 + mig;
    return !strcmp(name, "[system]") ? SCOPE_SYSTEM : !strcmp(name, "[devices]") ? SCOPE_DEVICES : SCOPE_OTHER;
}

static void add_scope(int scope)
{
    for (int i = 0; i < scope_count; i++)
        if (scopes[i] == scope)
            return;
    if (scope >= 0 && scope_count < (int)(sizeof scopes / sizeof *scopes))
        scopes[scope_count++] = scope;
}

static void parse(void)
{
    int scope = SCOPE_SYSTEM;
    size_t room = 1;
    for (char *c = text; *c; c++)
        room += *c == '\n';
    lines = malloc(room * sizeof *lines);
    if (!lines)
        return;
    char *rest = text, *raw;
    while ((raw = strsep(&rest, "\n"))) {
        char *line = trim(raw), *equals;
        if (*line == '[') {
            scope = section(line);
            add_scope(scope);
        } else if (*line != '#' && (equals = strstr(line, " ="))) {
            *equals = 0;
            lines[line_count++] = (struct line){scope, trim(line), trim(equals + 2)};
        }
    }
}

void state_look(void)
{
    char node[64];
    visible_count = 0;
    for (int i = 0; i < scope_count; i++) {
        const char *minor = scopes[i] % MIG_SLOTS ? NULL : state_value(scopes[i], "nvmlDeviceGetMinorNumber", NULL);
        if (!minor || visible_count == MAX_GPUS)
            continue;
        snprintf(node, sizeof node, "/dev/nvidia%s", minor);
        if (!may_open(node))
            visible[visible_count++] = scopes[i];
    }
}

void state_refresh(void)
{
    char file[PATH_MAX];
    struct statx now = {0};  // not fstat(), whose symbol glibc before 2.33 does not have
    int fd = open(path(file, "/etc/nvidia-sim/state"), O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
        statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &now);
    if (now.stx_ino == seen.stx_ino && now.stx_size == seen.stx_size && now.stx_mtime.tv_sec == seen.stx_mtime.tv_sec &&
        now.stx_mtime.tv_nsec == seen.stx_mtime.tv_nsec) {
        if (fd >= 0)
            close(fd);
        return;
    }
    free(text);
    free(lines);
    text = NULL, lines = NULL, line_count = 0, scope_count = 0;
    seen = now;
    if (fd >= 0) {
        text = calloc(1, (size_t)now.stx_size + 1);
        ssize_t n = text ? read(fd, text, (size_t)now.stx_size) : 0;
        close(fd);
        if (n > 0)
            parse();
    }
    state_look();
}

int state_scope(int i) { return i >= 0 && i < scope_count ? scopes[i] : -1; }

int state_visible(int i) { return i >= 0 && i < visible_count ? visible[i] : -1; }

int state_control(void)
{
    int error = may_open("/dev/nvidiactl");
    if (!lines || error == ENOENT)
        return NVML_DRIVER_NOT_LOADED;
    /* EPERM is the device control group's answer, which NVML calls an unknown error. */
    return error == 0 ? NVML_SUCCESS : error == EACCES ? NVML_NO_PERMISSION : NVML_UNKNOWN;
}

static const char *find(int scope, const char *key)
{
    for (size_t i = line_count; key && i-- > 0;)
        if (lines[i].scope == scope && !strcmp(lines[i].key, key))
            return lines[i].value;
    return NULL;
}

const char *state_value(int scope, const char *key, const char *any)
{
    const char *value = find(scope, key);
    if (!value)
        value = find(scope, any);
    if (!value && scope >= 0 && scope % MIG_SLOTS == 0) {
        value = find(SCOPE_DEVICES, key);
        if (!value)
            value = find(SCOPE_DEVICES, any);
    }
    return value;
}

static int alive(pid_t pid)
{
    char file[64], stat[512] = "";
    if (kill(pid, 0) && errno == ESRCH)
        return 0;
    /* A zombie has given its memory back; a /proc that hides the process leaves the benefit of the doubt. */
    snprintf(file, sizeof file, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(file, "re");
    if (!f)
        return 1;
    size_t n = fread(stat, 1, sizeof stat - 1, f);
    fclose(f);
    stat[n] = 0;
    char *state = strrchr(stat, ')');
    return !(state && state[1] == ' ' && strchr("ZX", state[2]));
}

static int claims_scope(int scope, const char *uuid)
{
    char own[96];
    for (int i = 0; i < scope_count; i++) {
        const char *value = find(scopes[i], "nvmlDeviceGetUUID");
        if (scopes[i] != scope && scopes[i] - scopes[i] % MIG_SLOTS != scope)
            continue;
        if (value && token(&value, own, sizeof own) && !strcmp(own, uuid))
            return 1;
    }
    return 0;
}

int state_claims(int scope, struct claim *out, int room)
{
    char directory[PATH_MAX], file[PATH_MAX + 300], uuid[96];
    int count = 0;
    struct dirent *entry;
    DIR *claims = opendir(path(directory, "/dev/shm/nvidia-sim/claims"));
    while (claims && (entry = readdir(claims))) {
        char *end, type;
        unsigned long long bytes;
        pid_t pid = (pid_t)strtol(entry->d_name, &end, 10);
        if (*end || pid <= 0 || !alive(pid))
            continue;
        snprintf(file, sizeof file, "%s/%s", directory, entry->d_name);
        FILE *f = fopen(file, "re");
        while (f && fscanf(f, "%95s %llu %c", uuid, &bytes, &type) == 3)
            if (claims_scope(scope, uuid) && count < room)
                out[count++] = (struct claim){pid, bytes, type};
        if (f)
            fclose(f);
    }
    if (claims)
        closedir(claims);
    return count;
}

int state_set(int scope, const char *key, uint32_t value)
{
    char file[PATH_MAX], line[256];
    int fd = open(path(file, "/etc/nvidia-sim/state"), O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0)
        return NVML_NO_PERMISSION;
    int n = snprintf(line, sizeof line, "\n[device %d]\n%s = %u\n", scope / MIG_SLOTS, key, value);
    ssize_t written = write(fd, line, (size_t)n);
    close(fd);
    return written == n ? NVML_SUCCESS : NVML_UNKNOWN;
}

int token(const char **value, char *out, size_t room)
{
    const char *s = *value;
    size_t n = 0;
    while (*s == ' ')
        s++;
    if (!*s)
        return 0;
    char end = *s == '"' ? *s++ : ' ';
    for (; *s && *s != end; s++)
        if (n + 1 < room)
            out[n++] = *s;
    out[n] = 0;
    *value = *s ? s + 1 : s;
    return 1;
}
