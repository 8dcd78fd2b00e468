/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * ioctl: the one request that tells that libcuda encrypts copies by itself.
 *
 * Attach points: nvidia_unlocked_ioctl (file, cmd, arg) where it can be probed, else
 *                syscalls:sys_enter_ioctl.
 * Requires:      kprobes and the driver, or CONFIG_FTRACE_SYSCALLS.
 * Per-event cost: a comparison for each ioctl of the driver (by the tracepoint: of the
 *                machine, and every system call takes its slower way into the kernel);
 *                a lookup and a read of the caller's memory for control requests.
 * Blind spots:   a request whose parameters are not in memory when it is made is
 *                counted as unreadable; one wrapped in another for its size is not
 *                looked into (this one is small).
 *
 * NV_ESC_RM_CONTROL is 'F', 0x2a; its parameters (NVOS54_PARAMETERS: two handles, then
 * u32 cmd) have the command at byte 8. NVC56F_CTRL_CMD_GET_KMB hands the keys of a
 * channel to the process (ctrlc56f.h of the open kernel modules).
 */

#define IOCTL_MAGIC_AND_NUMBER 0x462a
#define IOCTL_COMMAND_OFFSET 8
#define IOCTL_GET_KMB 0xc56f010b

static __always_inline void ioctl_seen(u32 request, u64 argument)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct cct_event *event;
	u32 command = 0;

	if ((request & 0xffff) != IOCTL_MAGIC_AND_NUMBER || !cct_current())
		return;
	if (bpf_probe_read_user(&command, sizeof(command),
				(char *)argument + IOCTL_COMMAND_OFFSET)) {
		cct_lose(CCT_KIND_IOCTL, CCT_LOST_READ);
		return;
	}
	if (command != IOCTL_GET_KMB)
		return;
	event = cct_reserve(CCT_KIND_IOCTL);
	if (!event)
		return;
	__builtin_memset(event, 0, sizeof(*event));
	event->ts_ns = bpf_ktime_get_ns();
	event->pid = pid_tgid >> 32;
	event->tid = (u32)pid_tgid;
	event->kind = CCT_KIND_IOCTL;
	event->detail = CCT_DIRECTION_UNKNOWN;
	cct_submit(event);
}

#ifdef TP_sys_enter_ioctl_cmd
int on_sys_enter_ioctl(void *ctx)
{
	ioctl_seen(TP_FIELD(ctx, u32, TP_sys_enter_ioctl_cmd),
		   TP_FIELD(ctx, u64, TP_sys_enter_ioctl_arg));
	return 0;
}
#endif

int on_ioctl_nvidia_entry(struct pt_regs *ctx)
{
	ioctl_seen((u32)PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
	return 0;
}
