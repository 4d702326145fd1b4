// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Rehearsal for `mcpguard doctor`: can a modify-return program on a security_* function refuse an open on this host?
 *
 * See probe_lsm.bpf.c: the same canary, the other way into the kernel.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "mg_canary.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("fmod_ret/security_file_open")
int BPF_PROG(mg_probe_modret, void *file, int ret)
{
	return ret ? ret : mg_canary_verdict();
}
