// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What guarded trees start, open, change and are refused: a record of it, never a verdict.
 *
 * Raw tracepoints see every process of the host, so each program first asks whose act it is, and leaves. Paths of opened
 * files come from the kernel's own objects. Strings of refused calls come from user memory and are only the program's word.
 */
#include "mg_calls.h"
#include "mg_end.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* --- processes ------------------------------------------------------------------------------------------------ */

SEC("raw_tp/sched_process_fork")
int mg_forked(struct bpf_raw_tracepoint_args *ctx)
{
	const struct mg_session *session = mg_current_session();
	struct task_struct *child = (void *)ctx->args[1];
	struct mg_fork record = {};

	if (!session)
		return 0;
	record.child = BPF_CORE_READ(child, tgid);
	if (record.child != BPF_CORE_READ(child, pid))
		return 0; /* a thread */
	mg_fill_head(&record.head, MG_RECORD_FORK);
	mg_send(session, &record, sizeof(record), 0);
	return 0;
}

static __always_inline void mg_executed_record(const struct mg_session *session, struct mg_scratch *scratch,
					       struct task_struct *task)
{
	struct mg_exec *record = (void *)scratch->record;
	struct mm_struct *mm = BPF_CORE_READ(task, mm);
	struct file *exe = BPF_CORE_READ(mm, exe_file);
	unsigned long start = BPF_CORE_READ(mm, arg_start), end = BPF_CORE_READ(mm, arg_end);
	__u64 length = end - start;
	__u32 at = sizeof(*record);
	__u8 cut = 0;

	__builtin_memset(record, 0, sizeof(*record));
	mg_fill_head(&record->head, MG_RECORD_EXEC);
	record->exe_length = mg_put_path(scratch, (__u64)&exe->f_path, at, &cut);
	record->exe_cut = cut;
	at += record->exe_length;
	if (length > MG_ARGV_BYTES) {
		length = MG_ARGV_BYTES;
		record->argv_cut = 1;
	}
	if (!bpf_probe_read_user(&scratch->record[at & MG_RECORD_MASK], length, (void *)start)) {
		record->argv_length = length;
		at += length;
	}
	if (at <= MG_RECORD_MASK)
		mg_send(session, record, at, 0);
}

SEC("raw_tp/sched_process_exec")
int mg_executed(struct bpf_raw_tracepoint_args *ctx)
{
	const struct mg_session *session = mg_current_session();
	struct mg_scratch *scratch;

	if (!session)
		return 0;
	scratch = mg_claim(session, 0);
	if (!scratch)
		return 0;
	mg_executed_record(session, scratch, (void *)ctx->args[0]);
	mg_release(scratch);
	return 0;
}

SEC("raw_tp/sched_process_exit")
int mg_exited(struct bpf_raw_tracepoint_args *ctx)
{
	const struct mg_session *session = mg_current_session();
	struct task_struct *task = (void *)ctx->args[0];
	struct mg_exit record = {};

	if (!session || BPF_CORE_READ(task, signal, live.counter) != 0)
		return 0;
	mg_fill_head(&record.head, MG_RECORD_EXIT);
	record.code = BPF_CORE_READ(task, signal, flags) & MG_SIGNAL_GROUP_EXIT ?
			      BPF_CORE_READ(task, signal, group_exit_code) :
			      BPF_CORE_READ(task, exit_code);
	mg_send(session, &record, sizeof(record), 0);
	return 0;
}

/* --- system calls, where the kernel has no programs on its functions ------------------------------------------- */

/* Most calls are of no interest: they leave before anything is asked, and before any helper is called where the kernel permits
 * that. Every process of the host pays for each.
 */
static __always_inline void mg_look_at_call(void *ctx)
{
	const struct mg_session *session;
	const struct mg_shape *shape;
	struct mg_syscall call = {};

	call.number = mg_end_number(ctx);
	call.result = mg_end_result(ctx);
	shape = mg_shape_of(call.number);
	if (!shape || !mg_matters(shape, call.result))
		return;
	session = mg_current_session();
	if (session)
		mg_ended(session, shape, mg_end_registers(ctx), &call);
}

SEC("raw_tp/sys_exit")
int mg_sys_exit(void *ctx)
{
	mg_look_at_call(ctx);
	return MG_OTHERS_TOO;
}
