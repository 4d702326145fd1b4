// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The record of what trees do with files through io_uring, told like the system calls that do the same.
 *
 * A request is noted when the kernel takes it from the ring, and told when it has its result. The programs are attached while there
 * is a session that may use io_uring. Its strings are the program's word, as those of system calls are.
 */
#include "mg_calls.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* An entry of a ring, as programs write it. */
struct mg_request {
	__u8 op;
	__u8 flags;
	__u16 priority;
	__s32 fd;
	__u64 off;
	__u64 address;
	__u32 length;
	__u32 op_flags;
	__u64 user_data;
	__u16 buffer;
	__u16 personality;
	__u32 slot;	/* of an open: not 0: into the ring's own table, and not a descriptor of the process */
	__u64 address3;
	__u64 reserved;
};

enum {
	MG_SETUP_SQE128 = 1 << 10,
	MG_RING_OPENAT = 18,
	MG_RING_STATX = 21,
	MG_RING_OPENAT2 = 28,
	MG_RING_RENAMEAT = 35,
	MG_RING_UNLINKAT = 36,
	MG_RING_MKDIRAT = 37,
	MG_RING_SYMLINKAT = 38,
	MG_RING_LINKAT = 39,
	MG_RING_FSETXATTR = 41,
	MG_RING_SETXATTR = 42,
	MG_RING_FTRUNCATE = 55,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct io_ring_ctx {
	unsigned int flags;
	__u32 *sq_array;
	void *sq_sqes;
	unsigned int cached_sq_head;
	unsigned int sq_entries;
};

struct io_cqe {
	__s32 res;
};

struct io_kiocb {
	__u8 opcode;
	struct io_cqe cqe;
	struct io_ring_ctx *ctx;
};

#pragma clang attribute pop

/* Requests of guarded trees on their way, by their address. The oldest make room. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct mg_syscall);
} mg_ring_requests SEC(".maps");

/* The system call that does the same, and its arguments; 0: none that is on record. */
static __always_inline int mg_as_call(const struct mg_request *request, struct mg_syscall *call)
{
	call->args[0] = (__u32)request->fd;
	call->args[1] = request->address;
	call->args[2] = request->op_flags;
	switch (request->op) {
	case MG_RING_OPENAT:
	case MG_RING_OPENAT2:
		call->number = request->op == MG_RING_OPENAT ? __NR_openat : __NR_openat2;
		if (request->op == MG_RING_OPENAT2)
			call->args[2] = request->off;
		call->args[3] = request->length;
		call->args[6] = request->slot;
		return 1;
	case MG_RING_STATX:
		call->number = __NR_statx;
		return 1;
	case MG_RING_UNLINKAT:
		call->number = __NR_unlinkat;
		return 1;
	case MG_RING_MKDIRAT:
		call->number = __NR_mkdirat;
		return 1;
	case MG_RING_RENAMEAT:
	case MG_RING_LINKAT:
		call->number = request->op == MG_RING_LINKAT ? __NR_linkat : __NR_renameat2;
		call->args[2] = request->length;
		call->args[3] = request->off;
		call->args[4] = request->op_flags;
		return 1;
	case MG_RING_SYMLINKAT:
		call->number = __NR_symlinkat;
		call->args[0] = request->address;
		call->args[1] = (__u32)request->fd;
		call->args[2] = request->off;
		return 1;
	case MG_RING_SETXATTR:
		call->number = __NR_setxattr;
		call->args[0] = request->address3;
		return 1;
	case MG_RING_FSETXATTR:
		call->number = __NR_fsetxattr;
		return 1;
	case MG_RING_FTRUNCATE:
		call->number = __NR_ftruncate;
		return 1;
	}
	return 0;
}

/* The entry that the kernel has taken last, for this request. */
static __always_inline int mg_entry_of(struct io_kiocb *request, struct mg_request *entry)
{
	struct io_ring_ctx *ring = BPF_CORE_READ(request, ctx);
	__u32 *places = BPF_CORE_READ(ring, sq_array);
	__u32 at = (BPF_CORE_READ(ring, cached_sq_head) - 1) & (BPF_CORE_READ(ring, sq_entries) - 1);

	if (places && bpf_probe_read_kernel(&at, sizeof(at), places + at))
		return 0;
	if (BPF_CORE_READ(ring, flags) & MG_SETUP_SQE128)
		at *= 2;
	if (bpf_probe_read_kernel(entry, sizeof(*entry), BPF_CORE_READ(ring, sq_sqes) + (__u64)at * sizeof(*entry)))
		return 0;
	/* Not what the program has put there since. */
	return entry->op == BPF_CORE_READ(request, opcode);
}

SEC("raw_tp/io_uring_submit_req")
int mg_ring_asked(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 key = ctx->args[0];
	struct mg_request entry = {};
	struct mg_syscall call = {};

	if (!mg_current_session() || !mg_entry_of((void *)key, &entry) || !mg_as_call(&entry, &call))
		return 0;
	bpf_map_update_elem(&mg_ring_requests, &key, &call, BPF_ANY);
	return 0;
}

/* In tier 1 the hooks tell of every refusal, by the file itself. */
static __always_inline int mg_ring_tells(const struct mg_session *session, const struct mg_shape *shape, long result)
{
	if (result < 0)
		return !(session->flags & MG_SESSION_PEERS) && mg_is_refusal(shape, result);
	return shape->kind != MG_SHAPE_LOOK;
}

SEC("raw_tp/io_uring_complete")
int mg_ring_done(struct bpf_raw_tracepoint_args *ctx)
{
	const struct mg_session *session = mg_current_session();
	struct io_kiocb *request = (void *)ctx->args[1];
	const struct mg_shape *shape;
	__u64 key = ctx->args[1];
	struct mg_syscall call = {}, *asked;

	if (!session)
		return 0;
	asked = bpf_map_lookup_elem(&mg_ring_requests, &key);
	if (!asked)
		return 0;
	call = *asked;
	bpf_map_delete_elem(&mg_ring_requests, &key);
	call.result = BPF_CORE_READ(request, cqe.res);
	shape = mg_shape_of(call.number);
	if (!shape || !mg_ring_tells(session, shape, call.result))
		return 0;
	if (shape->kind != MG_SHAPE_OPEN || call.result < 0)
		return mg_path_call(session, &call);
	return call.args[6] ? 0 : mg_opened(session, call.result);
}
