/* Copyright: (c) The gpufleet developers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the state of the simulated host says. state.c reads it, nvml.c answers NVML calls with it.
 *
 * The state is text: sections, and in them lines `key = value`, the last line of a key winning.
 *
 *     [system]                                  the host
 *     nvmlSystemGetDriverVersion = "580.159.04"
 *     [devices]                                 what every GPU has in common
 *     nvmlDeviceGetClockInfo[2] = 3201          [arguments] after the device handle; [*] = any other
 *     nvmlDeviceGetFanSpeed = !3                the NVML error returned
 *     [device 0]                                this GPU alone; a line `* = !15` answers every call
 *     [mig 0.0]                                 MIG device 0 of GPU 0
 *     [rdma 0]                                  not NVML's business: apply writes it to sysfs
 *
 * A value is what the function writes, in the order of its C arguments and struct fields (functions.def);
 * `hang` never returns. What no line answers is not supported.
 */
#ifndef SIM_H
#define SIM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    NVML_SUCCESS = 0,
    NVML_UNINITIALIZED = 1,
    NVML_INVALID_ARGUMENT = 2,
    NVML_NOT_SUPPORTED = 3,
    NVML_NO_PERMISSION = 4,
    NVML_NOT_FOUND = 6,
    NVML_INSUFFICIENT_SIZE = 7,
    NVML_DRIVER_NOT_LOADED = 9,
    NVML_GPU_IS_LOST = 15,
    NVML_VERSION_MISMATCH = 25,
    NVML_UNKNOWN = 999
};

/* A scope is a section of the state. GPU n is n * MIG_SLOTS, its MIG device m is n * MIG_SLOTS + 1 + m. */
enum { SCOPE_OTHER = -3, SCOPE_DEVICES = -2, SCOPE_SYSTEM = -1, MIG_SLOTS = 64, MAX_GPUS = 64 };

struct claim {
    pid_t pid;
    uint64_t bytes;
    char type; /* 'C' compute, 'G' graphics */
};

/* Reads the state anew if its file changed; a host without the file is one without a driver. */
void state_refresh(void);

/* Looks anew which nodes this process may open (state_refresh does when the state changed). */
void state_look(void);

/* The value of a key in a scope, NULL if no line answers; `any` is the key with [*] for arguments, or NULL. */
const char *state_value(int scope, const char *key, const char *any);

/* Every GPU and MIG device of the state: i-th scope, or -1 past the last. */
int state_scope(int i);

/* NVML's result of opening /dev/nvidiactl; the GPUs whose nodes this process may open, in order (-1 past the last). */
int state_control(void);
int state_visible(int i);

/* Live claims on the memory of this scope (a GPU's include its MIG devices'). Returns how many there are. */
int state_claims(int scope, struct claim *out, int room);

/* Appends a line to the state, as a driver keeps a setting. */
int state_set(int scope, const char *key, uint32_t value);

/* Copies the text of a token (quotes taken off) and steps past it; 0 at the end of the value. */
int token(const char **value, char *out, size_t room);

#endif
