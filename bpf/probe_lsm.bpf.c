// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Rehearsal for `mcpguard doctor`: can an LSM program refuse an open on this host?
 *
 * Loading is no proof: without `bpf` in the active LSM list such a program loads, attaches and is never called.
 * So it refuses every open of a process that carries the canary's name, and nothing else; doctor runs that canary,
 * looks at its errno, and detaches. The name is used instead of the PID because PIDs differ between namespaces.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "mg_canary.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("lsm/file_open")
int BPF_PROG(mg_probe_lsm, void *file, int ret)
{
	return ret ? ret : mg_canary_verdict();
}
