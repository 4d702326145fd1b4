// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The record of system calls from programs on the ends of the kernel's own functions for them.
 *
 * A tracepoint for system calls costs every process of the host at every call. These are asked only at the ends of calls that are
 * on record: one program for each, that asks whose act it is and goes on, if need be, in the one that all of them share. What the
 * system-call filter refuses reaches no such function; the kernel asks filters of processes that have one, and nobody else pays.
 */
#include "mg_calls.h"
#include "mg_stream.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#if defined(__TARGET_ARCH_arm64)
#define MG_FUNCTION "__arm64_sys_"
#else
#define MG_FUNCTION "__x64_sys_"
#endif

enum mg_further { MG_RECORDED = 0, MG_SENT = 1, MG_RECEIVED = 2 };

/* The programs go on in one that all share. A kernel may describe the registers that its functions take in two ways, by the name
 * of the parameter alone, and lets programs go on only in one for a function that is described alike. So there are two of each,
 * and the loader takes the ones that fit.
 */
#define MG_FIRST(name) name
#define MG_SECOND(name) name##__2

#define MG_SHARED(made)										\
	SEC("fexit/" MG_FUNCTION "openat")							\
	int made(mg_goes_on)(__u64 *ctx)							\
	{											\
		return mg_go_on(ctx);								\
	}											\
	SEC("fexit/" MG_FUNCTION "openat")							\
	int made(mg_goes_on_sent)(__u64 *ctx)							\
	{											\
		return mg_go_on_sent(ctx);							\
	}											\
	SEC("fexit/" MG_FUNCTION "openat")							\
	int made(mg_goes_on_received)(__u64 *ctx)						\
	{											\
		return mg_go_on_received(ctx);							\
	}											\
	struct {										\
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY);						\
		__uint(max_entries, 3);								\
		__uint(key_size, sizeof(__u32));						\
		__array(values, int(void *));							\
	} made(mg_further) SEC(".maps") = {							\
		.values = {									\
			[MG_RECORDED] = (void *)&made(mg_goes_on),				\
			[MG_SENT] = (void *)&made(mg_goes_on_sent),				\
			[MG_RECEIVED] = (void *)&made(mg_goes_on_received),			\
		}										\
	};

/* The name tells the loader the call and its number: mg_call_openat_257. */
#define MG_NAMED(function, number) mg_call_##function##_##number

#define MG_CALL_PROGRAM(name, function, look)							\
	SEC("fexit/" MG_FUNCTION #function)							\
	int name(__u64 *ctx)									\
	{											\
		return look;									\
	}

static __always_inline int mg_go_on(__u64 *ctx)
{
	const struct mg_session *session = mg_current_session();
	void *registers = (void *)ctx[0];
	struct mg_syscall call = { .number = mg_number(registers), .result = ctx[1] };
	const struct mg_shape *shape = mg_shape_of(call.number);

	return session && shape && mg_matters(shape, call.result) ? mg_ended(session, shape, registers, &call) : 0;
}

static __noinline int mg_look_at_send(void *registers, long result)
{
	const struct mg_session *session = mg_current_session();

	return session ? mg_send_ended(session, registers, mg_number(registers), result) : 0;
}

static __always_inline int mg_go_on_sent(__u64 *ctx)
{
	return mg_look_at_send((void *)ctx[0], ctx[1]);
}

static __noinline int mg_look_at_receive(void *registers, long result)
{
	const struct mg_session *session = mg_current_session();

	return session ? mg_received(session, registers, mg_number(registers), mg_first(registers), result) : 0;
}

static __always_inline int mg_go_on_received(__u64 *ctx)
{
	return mg_look_at_receive((void *)ctx[0], ctx[1]);
}

/* The compiler knows the shape. Opens that succeed are what trees do most: they are told here. */
static __always_inline int mg_look(__u64 *ctx, void *further, struct mg_shape shape, __u32 number)
{
	const struct mg_session *session;
	long result = ctx[1];

	if (!mg_matters(&shape, result))
		return 0;
	if (shape.kind == MG_SHAPE_OPEN && result >= 0) {
		session = mg_current_session();
		return session ? mg_open_ended(session, number, result) : 0;
	}
	if (!mg_may_have_session(mg_current_leaf()))
		return 0;
	bpf_tail_call(ctx, further, MG_RECORDED);
	session = mg_current_session(); /* it does not come back */
	if (session)
		mg_lost(session, result < 0);
	return 0;
}

/* Reads and writes of files, which are most of all, need no session to be of no interest. Where each word of the kernel's is a call,
 * telling them here takes connections as much time again.
 */
static __always_inline int mg_is_file(__u64 *ctx, __u32 number)
{
	struct file *file;

	if (!MG_READS_FREELY)
		return 0;
	switch (number) {
	case __NR_read:
	case __NR_readv:
	case __NR_preadv2:
	case __NR_write:
	case __NR_writev:
	case __NR_pwritev2:
		file = mg_own_file((__u32)mg_first((void *)ctx[0]));
		return !mg_connection_type((void *)MG_ADDRESS(struct file, file, f_inode));
	}
	return 0;
}

/* The compiler knows the number. */
static __always_inline int mg_look_moved(__u64 *ctx, void *further, enum mg_further next, __u32 number)
{
	const struct mg_session *session;

	if ((long)ctx[1] <= 0 || !mg_may_have_session(mg_current_leaf()) || mg_is_file(ctx, number))
		return 0;
	bpf_tail_call(ctx, further, next);
	session = mg_current_session();
	if (session)
		mg_lose_pieces(session, 1, 0);
	return 0;
}

MG_SHARED(MG_FIRST)
MG_SHARED(MG_SECOND)

#define MG_TWO(function, number, ...)									\
	MG_CALL_PROGRAM(MG_NAMED(function, number), function,						\
			mg_look(ctx, &mg_further, (struct mg_shape)__VA_ARGS__, number))		\
	MG_CALL_PROGRAM(MG_SECOND_NAMED(function, number), function,					\
			mg_look(ctx, &mg_further__2, (struct mg_shape)__VA_ARGS__, number))
#define MG_TWO_MOVED(way, function, name, next)										\
	MG_CALL_PROGRAM(MG_NAMED(way##_##function, name), function, mg_look_moved(ctx, &mg_further, next, name))		\
	MG_CALL_PROGRAM(MG_SECOND_NAMED(way##_##function, name), function, mg_look_moved(ctx, &mg_further__2, next, name))
#define MG_SECOND_NAMED(function, number) mg_call_##function##_##number##__2

/* The number is expanded before it is made part of a name. */
#define MG_NUMBERED(function, number, ...) MG_TWO(function, number, __VA_ARGS__)
#define MG_NUMBERED_SENT(function, number) MG_TWO_MOVED(sent, function, number, MG_SENT)
#define MG_NUMBERED_RECEIVED(function, number) MG_TWO_MOVED(received, function, number, MG_RECEIVED)

#define MG_LISTED_AS(function, name, ...) MG_NUMBERED(function, __NR_##name, __VA_ARGS__)
#define MG_LISTED(name, ...) MG_NUMBERED(name, __NR_##name, __VA_ARGS__)
#define MG_FILTERED(name, ...)
#include "mg_listed.h"

MG_NUMBERED_SENT(write, __NR_write)
MG_NUMBERED_SENT(writev, __NR_writev)
MG_NUMBERED_SENT(pwritev2, __NR_pwritev2)
MG_NUMBERED_SENT(sendto, __NR_sendto)
MG_NUMBERED_SENT(sendmsg, __NR_sendmsg)
MG_NUMBERED_SENT(sendmmsg, __NR_sendmmsg)
MG_NUMBERED_SENT(splice, __NR_splice)
MG_NUMBERED_SENT(vmsplice, __NR_vmsplice)
MG_NUMBERED_SENT(tee, __NR_tee)
MG_NUMBERED_SENT(sendfile64, __NR_sendfile)
MG_NUMBERED_RECEIVED(read, __NR_read)
MG_NUMBERED_RECEIVED(readv, __NR_readv)
MG_NUMBERED_RECEIVED(preadv2, __NR_preadv2)
MG_NUMBERED_RECEIVED(recvfrom, __NR_recvfrom)
MG_NUMBERED_RECEIVED(recvmsg, __NR_recvmsg)
MG_NUMBERED_RECEIVED(recvmmsg, __NR_recvmmsg)

/* A filter said no, and the result that the program will see stands in the registers. */
SEC("fexit/__secure_computing")
int mg_call_filtered(__u64 *ctx)
{
	const struct mg_session *session;
	const struct mg_shape *shape;
	struct mg_syscall call = {};
	__u64 verdict = 0;
	void *registers;

	if (bpf_get_func_ret(ctx, &verdict) || !(__u32)verdict)
		return 0;
	session = mg_current_session();
	if (!session)
		return 0;
	registers = mg_entry_registers();
	call.number = mg_number(registers);
	call.result = mg_result(registers);
	shape = mg_shape_of(call.number);
	return shape && call.result < 0 && mg_matters(shape, call.result) ? mg_ended(session, shape, registers, &call) : 0;
}
