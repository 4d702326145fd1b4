/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The few fields of kernel types that the programs read; libbpf finds their real offsets on the host (CO-RE).
 *
 * Written down by hand, so that a reviewer sees what is read and a build needs no running kernel.
 */
#ifndef MG_KERNEL_H
#define MG_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <asm/ptrace.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define MG_FMODE_READ 0x1
#define MG_FMODE_WRITE 0x2
#define MG_OPEN_FOR_EXEC 0x20	/* in f_flags; no program can give it */
#define MG_FMODE_PATH 0x4000
#define MG_FMODE_CREATED 0x100000
#define MG_MNT_INTERNAL 0x4000
#define MG_SIGNAL_GROUP_EXIT 0x4
#define MG_SKB_ZERO_COPY 0x1	/* pages of a packet that belong to whoever sends it */
#define MG_SKB_SHARED 0x2	/* pages of a packet that somebody else has, too */

/* Kernels from 6.2 on let a program read a word at any address without a call; the programs live off such reads. */
extern void *bpf_rdonly_cast(void *object, __u32 type) __ksym __weak;

enum special_kfunc_type {
	KF_bpf_rdonly_cast,
};

#define MG_READS_FREELY bpf_core_enum_value_exists(enum special_kfunc_type, KF_bpf_rdonly_cast)

/* A field, or a field of a struct in it, of the object at an address; 0 where nothing can be read. */
#define MG_READ(type, address, field)								\
	({											\
		type *object_ = (void *)(__u64)(address);					\
		__u64 value_;									\
												\
		if (MG_READS_FREELY) {								\
			object_ = bpf_rdonly_cast(object_, bpf_core_type_id_kernel(type));	\
			value_ = (__u64)object_->field;						\
		} else {									\
			value_ = (__u64)BPF_CORE_READ(object_, field);				\
		}										\
		value_;										\
	})

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* Begins with a whole word that is a number. */
struct timespec64 {
	long long tv_sec;
};

struct qstr {
	union {
		struct {
			__u32 hash;
			__u32 len;
		};
		__u64 hash_len;
	};
	const unsigned char *name;
};

struct user_namespace {
	int level;
};

struct dentry;

struct super_block {
	__u32 s_dev;
	unsigned long s_flags;
	unsigned long s_magic;
	struct dentry *s_root;
	struct user_namespace *s_user_ns;
};

struct inode {
	__u16 i_mode;
	__u32 i_generation;
	unsigned long i_ino;
	struct super_block *i_sb;
};

/* Two words in a row. */
struct list_head {
	struct list_head *next;
	struct list_head *prev;
};

/* The kernel's own are called by their typedefs, and hold more where locks are debugged. */
struct seqcount {
	__u32 sequence;
};

struct seqcount_spinlock {
	struct seqcount seqcount;
};

struct dentry {
	struct seqcount_spinlock d_seq;
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
	struct super_block *d_sb;
};

struct vfsmount {
	struct dentry *mnt_root;
	int mnt_flags;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	unsigned int f_mode;
	unsigned int f_flags;
	void *private_data;
	struct inode *f_inode;
	struct path f_path;
	const struct cred *f_cred;
};

struct vm_area_struct {
	struct file *vm_file;
};

struct iattr {
	unsigned int ia_valid;
};

struct cred {
	struct user_namespace *user_ns;
	struct kernel_cap {
		__u64 bits;	/* two words on older kernels; the lower ones come first on both */
	} cap_effective, cap_bset;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct fs_struct {
	struct path pwd;
};

struct mm_struct {
	unsigned long arg_start;
	unsigned long arg_end;
	struct file *exe_file;
};

struct mg_atomic {
	int counter;
};

struct signal_struct {
	struct mg_atomic live;
	int group_exit_code;
	unsigned int flags;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct hlist_node {
	struct hlist_node *next;
	struct hlist_node **pprev;
};

struct hlist_head {
	struct hlist_node *first;
};

/* By kind: threads, processes, groups, sessions. */
enum { MG_PIDTYPE_PID = 0, MG_PIDTYPES = 4 };

struct pid {
	struct hlist_head tasks[MG_PIDTYPES];
};

/* An inode of /proc; `pid` is 0 for what belongs to no process. */
struct proc_inode {
	struct pid *pid;
	struct inode vfs_inode;
};

typedef struct {
	void *net;
} possible_net_t;

struct sock_common {
	unsigned short skc_family;
	unsigned char skc_ipv6only : 1;
	possible_net_t skc_net;
	struct hlist_node skc_node;
};

struct page {
	void *mapping;
	unsigned long compound_head;
};

struct page_frag {
	struct page *page;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	struct sock_cgroup_data sk_cgrp_data;
	struct page_frag sk_frag;
};

struct socket {
	struct sock *sk;
};

struct sockaddr_un {
	unsigned short sun_family;
	char sun_path[108];
};

struct unix_address {
	int len;
	struct sockaddr_un name[0];
};

struct unix_sock {
	struct sock sk;
	struct unix_address *addr;
	struct path path;
};

struct bpf_sock_addr_kern {
	struct sock *sk;
	void *uaddr;
	__u32 uaddrlen;
};

struct task_struct {
	int pid;
	int tgid;
	int exit_code;
	unsigned int personality;
	__u64 start_time;
	__u64 self_exec_id;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct mm_struct *mm;
	struct fs_struct *fs;
	struct files_struct *files;
	struct signal_struct *signal;
	const struct cred *cred;
	struct css_set *cgroups;
	struct hlist_node pid_links[MG_PIDTYPES];
	char comm[16];
	struct page_frag task_frag;
};

struct sk_buff {
	struct sock *sk;
	unsigned int data_len;	/* of `len`, in pages */
	unsigned char *head;
	unsigned int end;	/* from `head` on */
};

struct skb_shared_info {
	__u8 flags;
	__u8 nr_frags;
	struct { } frags[0];
};

#pragma clang attribute pop

/* A word at an address, and an address in an object: as numbers, which say nothing to the verifier. What MG_READ gives of a pointer
 * is typed where it was read without a call, and functions that are checked by themselves take no such thing.
 */
#define MG_NUMBER_AT(address) MG_READ(struct timespec64, address, tv_sec)
#define MG_ADDRESS(type, address, field) MG_NUMBER_AT((__u64)(address) + bpf_core_field_offset(type, field))

/* The calling task; its fields, and what they point to, are read without a call. */
static __always_inline struct task_struct *mg_current_task(void)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();

	/* Read as what it may be, not as what it is: then no kernel asks for proofs that a pointer leads somewhere. */
	return MG_READS_FREELY ? bpf_rdonly_cast(task, bpf_core_type_id_kernel(struct task_struct)) : task;
}

static __always_inline struct proc_inode *mg_proc_inode_of(struct inode *inode)
{
	return (void *)inode - bpf_core_field_offset(struct proc_inode, vfs_inode);
}

/* The task of a link in the list of those that have a number (MG_PIDTYPE_PID, the first of its links). */
static __always_inline struct task_struct *mg_task_of_pid_link(struct hlist_node *link)
{
	return (void *)link - bpf_core_field_offset(struct task_struct, pid_links);
}

/* The file behind a descriptor of the calling task. */
static __always_inline struct file *mg_own_file(__u64 fd)
{
	struct fdtable *table = mg_current_task()->files->fdt;

	return fd < table->max_fds ? (void *)MG_NUMBER_AT(table->fd + fd) : 0;
}

#endif
