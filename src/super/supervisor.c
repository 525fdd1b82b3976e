/* Theory of operation.
 *
 *   prepare    kernel image, guest RAM, sockets           (nothing runs yet)
 *   start      session role, vm role, its configuration, raw terminal
 *   run        one event loop: control sockets, pidfds, signals, timers
 *   finish     both roles ended or killed, reaped; terminal back; report,
 *              trace, counters; one status
 *
 * The VM goes through phases.  RUNNING until the command has ended or the vm
 * role has; POWERING_OFF while the guest of an ended command shuts itself
 * down; STOPPING while the vm role is asked to end; DRAINING while the session
 * writes out what came from a VM that is gone.  Every wait that another
 * process could prolong has a timer, except the session's waiting for a slow
 * reader of the user's: signals end that one.
 *
 * What the roles say is checked by msg_recv() against the tables of proto.c;
 * a role that sends anything else is killed. */
#include "super/super.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/log.h"
#include "core/loop.h"
#include "core/ram.h"
#include "core/report.h"
#include "core/spawn.h"
#include "core/trace.h"
#include "vcpu/vcpu.h"
#include "core/tsc.h"
#include "super/copy_out.h"
#include "super/kernel_cache.h"
#include "super/proto.h"
#include "super/terminal.h"

#define SUPER_READY_NS 60000000000ull /* for the vm role to confine itself and load the kernel */
#define SUPER_GRACE_NS 3000000000ull /* for the guest to power off after its command ended */
#define SUPER_STOP_NS 1000000000ull  /* for the vm role to send counters and end */
#define SUPER_EXIT_NS 1000000000ull  /* for a role that said it ends */
#define SUPER_ROLE_LOG_MAX 2000      /* lines of one role that are shown: a hostile one must not fill the user's disk */
#define SUPER_BATCH 64               /* messages of one role read before anything else gets its turn */
#define SUPER_INSIST 3               /* so many equal signals of the user end the VM at once */

enum super_phase { SUPER_RUNNING, SUPER_POWERING_OFF, SUPER_STOPPING, SUPER_DRAINING, SUPER_DONE };

struct super_peer {
	const char *name;
	struct spawned proc;
	int sock; /* control; -1: closed */
	unsigned logged; /* lines it has put into our log */
	bool killed; /* by us: how it died says nothing */
};

struct super {
	const struct super_config *cfg;
	struct super_result *res;
	struct loop *loop;
	struct loop_timer timer;   /* of the phase */
	struct loop_timer timeout; /* cfg->timeout_ns */
	enum super_phase phase;

	struct super_peer vm, session;
	int ram_fd, kernel_fd, report_fd, trace_fd, checkpoint_fd;
	u64 trace_size;
	int console[2], agent[2]; /* [0]: the vm's end */
	int signal_fd;
	sigset_t old_mask;
	bool masked;
	struct terminal tty;
	struct msg msg;

	bool have_status;  /* the command's own */
	int status;
	bool vm_ended;     /* PROTO_VM_ENDED came */
	struct proto_vm_ended ended;
	bool want_report;
	char tail[PROTO_TAIL_MAX]; /* of the console, for the report */
	u32 tail_len;
	unsigned signals[NSIG];
	bool session_started;
	u64 start_ns, boot_ns;
	struct tsc_moment tsc0;
};

/* The first cause stays: later ones follow from it. */
__attribute__((format(printf, 2, 3))) static void super_fail(struct super *s, const char *fmt, ...)
{
	if (s->res->error[0] || s->have_status)
		return;
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(s->res->error, sizeof s->res->error, fmt, ap);
	va_end(ap);
	err_sanitize(s->res->error, sizeof s->res->error);
	s->res->status = SUPER_STATUS_FAILED;
}

static void super_set_status(struct super *s, int status)
{
	if (s->have_status || s->res->error[0])
		return;
	s->have_status = true;
	s->status = status;
}

static void super_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void super_stat(struct super *s, const char *name, u64 value)
{
	if (s->res->n_stats == SUPER_MAX_STATS)
		return;
	struct super_stat *st = &s->res->stat[s->res->n_stats++];
	snprintf(st->name, sizeof st->name, "%s", name);
	st->value = value;
}

/* --- phases --- */

static void super_kill(struct super_peer *p)
{
	p->killed = true;
	spawn_kill(&p->proc);
}

static void super_phase_timer(struct super *s, enum super_phase phase, u64 ns)
{
	s->phase = phase;
	if (ns)
		loop_timer_set(&s->timer, loop_now_ns() + ns);
	else
		loop_timer_cancel(&s->timer);
}

/* Ends the loop when nothing of the VM is left. */
static void super_check_done(struct super *s)
{
	if (!s->vm.proc.pid && !s->session.proc.pid) {
		s->phase = SUPER_DONE;
		loop_stop(s->loop);
	}
}

/* Asks the vm role to end. */
static void super_stop_vm(struct super *s)
{
	if (!s->vm.proc.pid || s->phase >= SUPER_STOPPING)
		return;
	super_phase_timer(s, SUPER_STOPPING, SUPER_STOP_NS);
	if (s->vm.sock < 0 || msg_send(s->vm.sock, PROTO_VM_STOP, NULL, 0, NULL, 0))
		super_kill(&s->vm);
}

/* At once, without counters and without what is not written yet. */
static void super_abort(struct super *s)
{
	super_kill(&s->vm);
	super_kill(&s->session);
}

static void super_vm_gone(struct super *s, int wstatus)
{
	if (!s->vm_ended && !s->vm.killed) {
		char how[64];
		spawn_describe(wstatus, how, sizeof how);
		s->want_report |= !s->have_status;
		const char *hint = WIFSIGNALED(wstatus) && WTERMSIG(wstatus) == SIGKILL ?
					   " (out of memory, or somebody killed it)" : "";
		super_fail(s, "the VM ended: its process %s%s", how, hint);
	} else if (!s->vm_ended) {
		super_fail(s, "the VM did not answer and was killed");
	}
	/* The session still has what the VM sent; it ends when it has written it out. */
	if (s->session.proc.pid) {
		super_phase_timer(s, SUPER_DRAINING, 0);
		if (s->session.sock < 0 || msg_send(s->session.sock, PROTO_SESSION_STOP, NULL, 0, NULL, 0))
			super_kill(&s->session);
	}
}

static void super_session_gone(struct super *s, int wstatus)
{
	bool clean = WIFEXITED(wstatus) && WEXITSTATUS(wstatus) == 0;
	/* A raw console's session may end before the VM (standard input at its end is no reason: then it stays). */
	if (!s->session.killed && !clean) {
		char how[64];
		spawn_describe(wstatus, how, sizeof how);
		super_fail(s, "the VM ended: its session process %s", how);
	}
	if (!s->vm.proc.pid)
		return;
	if (s->have_status || s->res->error[0] || !s->cfg->exit_by_vm) {
		if (!s->have_status && s->phase == SUPER_RUNNING)
			super_fail(s, "the VM ended: its session process ended before the command");
		super_stop_vm(s);
	} else if (s->phase == SUPER_RUNNING) {
		super_set_status(s, 0); /* the console was closed by its user */
		super_stop_vm(s);
	}
}

static void super_on_timer(void *arg)
{
	struct super *s = arg;
	switch (s->phase) {
	case SUPER_POWERING_OFF:
		log_info("the guest did not power off in time");
		super_stop_vm(s);
		break;
	case SUPER_STOPPING:
		super_kill(&s->vm);
		break;
	case SUPER_RUNNING:
		super_fail(s, "the VM did not start in time");
		super_abort(s);
		break;
	case SUPER_DRAINING:
	case SUPER_DONE:
		break;
	}
}

static void super_on_timeout(void *arg)
{
	struct super *s = arg;
	super_fail(s, "the VM ended: time limit reached");
	super_abort(s);
}

/* --- processes and their messages --- */

static void super_on_exit(void *arg, int fd, u32 events);
static void super_on_vm(void *arg, int fd, u32 events);
static void super_on_session(void *arg, int fd, u32 events);

static void super_hang_up(struct super *s, struct super_peer *p)
{
	if (p->sock < 0)
		return;
	loop_remove(s->loop, p->sock);
	super_close(&p->sock);
}

/* A message that the tables do not know: the role is not itself any more. */
static void super_broken(struct super *s, struct super_peer *p)
{
	super_fail(s, "the VM ended: its %s process sent a malformed message", p->name);
	s->want_report |= p == &s->vm;
	super_hang_up(s, p);
	super_kill(p);
}

/* Text out of a message body; terminated and printable. */
static void super_text(char *out, size_t out_size, const char *in, size_t in_size)
{
	size_t n = in_size < out_size ? in_size : out_size;
	memcpy(out, in, n);
	out[n - 1] = 0;
	err_sanitize(out, n);
}

static void super_role_log(struct super_peer *p, const struct msg *m)
{
	if (p->logged >= SUPER_ROLE_LOG_MAX)
		return;
	struct proto_log l;
	char text[sizeof l.text];
	memcpy(&l, m->body, sizeof l);
	super_text(text, sizeof text, l.text, sizeof l.text);
	log_line(l.level > LOG_DEBUG ? LOG_DEBUG : (enum log_level)l.level, "%s: %s", p->name, text);
	if (++p->logged == SUPER_ROLE_LOG_MAX)
		log_warn("%s: has said enough: no more of its messages are shown", p->name);
}

static void super_role_failed(struct super *s, const struct super_peer *p, const struct msg *m)
{
	struct proto_failed f;
	char text[sizeof f.text];
	memcpy(&f, m->body, sizeof f);
	super_text(text, sizeof text, f.text, sizeof f.text);
	super_fail(s, "%s", text[0] ? text : "the VM could not be started");
}

static void super_vm_ended(struct super *s, const struct msg *m)
{
	memcpy(&s->ended, m->body, sizeof s->ended);
	s->vm_ended = true;
	char text[sizeof s->ended.text];
	super_text(text, sizeof text, s->ended.text, sizeof s->ended.text);
	memcpy(s->ended.text, text, sizeof text);
	s->want_report |= s->ended.ending == PROTO_END_TRIPLE_FAULT || s->ended.ending == PROTO_END_ENGINE ||
			  s->ended.ending == PROTO_END_PANIC ||
			  (s->ended.ending == PROTO_END_INSN_LIMIT && s->cfg->checkpoint_fd < 0); /* no error: to be looked at */
	if (s->phase < SUPER_STOPPING)
		super_phase_timer(s, SUPER_STOPPING, SUPER_EXIT_NS); /* it exits by itself, soon */
}

static void super_vm_stats(struct super *s, const struct msg *m)
{
	struct proto_stats st;
	memcpy(&st, m->body, sizeof st);
	for (unsigned i = 0; i < st.n && i < ARRAY_SIZE(st.stat); i++) {
		st.stat[i].name[sizeof st.stat[i].name - 1] = 0;
		err_sanitize(st.stat[i].name, sizeof st.stat[i].name);
		super_stat(s, st.stat[i].name, st.stat[i].value);
	}
}

/* A role that never stops talking does not keep the supervisor from signals and timers. */
static void super_on_vm(void *arg, int fd, u32 events)
{
	struct super *s = arg;
	for (unsigned i = 0; i < SUPER_BATCH || (events & EPOLLHUP); i++) {
		int r = msg_recv(fd, &s->msg, proto_from_vm, proto_from_vm_n, true);
		if (r == -EAGAIN)
			return;
		if (r == 0) {
			super_hang_up(s, &s->vm); /* its end comes through the pidfd */
			return;
		}
		if (r < 0) {
			super_broken(s, &s->vm);
			return;
		}
		switch (s->msg.type) {
		case PROTO_VM_READY:
			if (s->phase == SUPER_RUNNING)
				super_phase_timer(s, SUPER_RUNNING, 0);
			break;
		case PROTO_VM_STATS: super_vm_stats(s, &s->msg); break;
		case PROTO_VM_ENDED: super_vm_ended(s, &s->msg); break;
		case PROTO_LOG: super_role_log(&s->vm, &s->msg); break;
		case PROTO_FAILED:
			super_role_failed(s, &s->vm, &s->msg);
			s->vm.killed = true; /* its exit is explained */
			break;
		default: break;
		}
	}
}

static void super_session_exited(struct super *s, const struct msg *m)
{
	struct proto_exited x;
	memcpy(&x, m->body, sizeof x);
	if (x.status > 255) {
		super_broken(s, &s->session);
		return;
	}
	super_set_status(s, (int)x.status);
	if (s->phase == SUPER_RUNNING)
		super_phase_timer(s, SUPER_POWERING_OFF, s->cfg->grace_ns ? s->cfg->grace_ns : SUPER_GRACE_NS);
}

static void super_session_failed(struct super *s, const struct msg *m)
{
	struct proto_text t;
	char text[sizeof t.text];
	memcpy(&t, m->body, sizeof t);
	super_text(text, sizeof text, t.text, sizeof t.text);
	super_fail(s, "%s", text);
	s->want_report = true;
	super_stop_vm(s);
}

static void super_session_tail(struct super *s, const struct msg *m)
{
	memcpy(s->tail, m->body, m->len); /* the table has checked the length */
	s->tail_len = m->len;
}

static void super_on_session(void *arg, int fd, u32 events)
{
	struct super *s = arg;
	for (unsigned i = 0; i < SUPER_BATCH || (events & EPOLLHUP); i++) {
		int r = msg_recv(fd, &s->msg, proto_from_session, proto_from_session_n, true);
		if (r == -EAGAIN)
			return;
		if (r == 0) {
			super_hang_up(s, &s->session);
			return;
		}
		if (r < 0) {
			super_broken(s, &s->session);
			return;
		}
		switch (s->msg.type) {
		case PROTO_SESSION_STARTED:
			if (!s->session_started)
				s->boot_ns = loop_now_ns() - s->start_ns;
			s->session_started = true;
			break;
		case PROTO_SESSION_EXITED: super_session_exited(s, &s->msg); break;
		case PROTO_SESSION_TAIL: super_session_tail(s, &s->msg); break;
		case PROTO_SESSION_FAILED: super_session_failed(s, &s->msg); break;
		case PROTO_LOG: super_role_log(&s->session, &s->msg); break;
		case PROTO_FAILED:
			super_role_failed(s, &s->session, &s->msg);
			s->session.killed = true;
			break;
		default: break;
		}
		if (s->session.sock < 0)
			return;
	}
}

/* A pidfd became readable: that process is gone. */
static void super_on_exit(void *arg, int fd, u32 events)
{
	struct super *s = arg;
	bool is_vm = fd == s->vm.proc.pidfd;
	struct super_peer *p = is_vm ? &s->vm : &s->session;
	/* Its last words first. */
	if (p->sock >= 0)
		(is_vm ? super_on_vm : super_on_session)(s, p->sock, EPOLLIN | EPOLLHUP);
	loop_remove(s->loop, fd);
	int wstatus = 0;
	if (spawn_reap(&p->proc, true, &wstatus))
		return;
	super_hang_up(s, p);
	if (is_vm)
		super_vm_gone(s, wstatus);
	else
		super_session_gone(s, wstatus);
	super_check_done(s);
}

/* --- signals and terminal --- */

static void super_send_winsize(struct super *s)
{
	struct proto_winsize w = { 0 };
	if (s->session.sock >= 0 && terminal_size(s->cfg->stdin_fd, &w.rows, &w.cols))
		(void)msg_send(s->session.sock, PROTO_SESSION_WINSIZE, &w, sizeof w, NULL, 0);
}

static void super_on_signal(void *arg, int fd, u32 events)
{
	struct super *s = arg;
	struct signalfd_siginfo si;
	while (read(fd, &si, sizeof si) == sizeof si) {
		if (si.ssi_signo == SIGWINCH) {
			super_send_winsize(s);
			continue;
		}
		/* To the command, when there is one that could do something about it; a user who insists wins. */
		bool forward = s->session_started && !s->cfg->exit_by_vm && s->phase == SUPER_RUNNING;
		if (++s->signals[si.ssi_signo % NSIG] >= SUPER_INSIST)
			forward = false;
		struct proto_signal p = { .signo = si.ssi_signo };
		if (forward && s->session.sock >= 0 &&
		    msg_send(s->session.sock, PROTO_SESSION_SIGNAL, &p, sizeof p, NULL, 0) == 0)
			continue;
		super_set_status(s, 128 + (int)si.ssi_signo);
		super_abort(s);
	}
}

static int super_catch_signals(struct super *s, struct err *e)
{
	static const int caught[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH };
	sigset_t set;
	sigemptyset(&set);
	for (unsigned i = 0; i < ARRAY_SIZE(caught); i++) {
		struct sigaction sa;
		/* A signal our parent made us ignore (nohup, background jobs of a shell) stays ignored. */
		if (sigaction(caught[i], NULL, &sa) == 0 && sa.sa_handler == SIG_IGN)
			continue;
		sigaddset(&set, caught[i]);
	}
	if (sigprocmask(SIG_BLOCK, &set, &s->old_mask))
		return err_sys(e, errno, "cannot block signals");
	s->masked = true;
	s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->signal_fd < 0)
		return err_sys(e, errno, "cannot watch signals");
	int r = loop_add(s->loop, s->signal_fd, EPOLLIN, super_on_signal, s);
	return r ? err_sys(e, -r, "cannot watch signals") : 0;
}

/* --- prepare and start --- */

static int super_check_memory(const struct super_config *cfg, struct err *e)
{
	struct sysinfo si;
	if (sysinfo(&si))
		return err_sys(e, errno, "cannot ask for the host's memory");
	u64 have = ((u64)si.totalram + si.totalswap) * si.mem_unit;
	if (cfg->memory > have) {
		err_set(e, ENOMEM, "cannot give the VM %llu MiB of memory: the host has %llu MiB",
			(unsigned long long)(cfg->memory / MiB), (unsigned long long)(have / MiB));
		err_hint(e, "use a smaller --memory");
		return -ENOMEM;
	}
	return 0;
}

static int super_memfd(const char *name, u64 size, const char *what, struct err *e)
{
	int fd = ram_memfd_create(name, size);
	return fd < 0 ? err_sys(e, -fd, "cannot make %s", what) : fd;
}

static int super_stream_pair(int sv[2], struct err *e)
{
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv))
		return err_sys(e, errno, "cannot make a socket");
	return 0;
}

static int super_prepare_trace(struct super *s, struct err *e)
{
	s->trace_size = TRACE_SIZE(TRACE_MAX_RINGS);
	s->trace_fd = super_memfd("umbra-trace", s->trace_size, "the trace buffer", e);
	if (s->trace_fd < 0)
		return s->trace_fd;
	/* The vm role fills in the frequency. */
	struct trace *t = mmap(NULL, s->trace_size, PROT_READ | PROT_WRITE, MAP_SHARED, s->trace_fd, 0);
	if (t == MAP_FAILED)
		return err_sys(e, errno, "cannot make the trace buffer");
	trace_init(t, TRACE_MAX_RINGS, s->cfg->trace_mask, 0);
	munmap(t, s->trace_size);
	return 0;
}

#define CHECKPOINTS_SIZE (64 * MiB) /* sparse; about 200 000 checkpoints */

static int super_prepare_checkpoints(struct super *s, struct err *e)
{
	s->checkpoint_fd = super_memfd("umbra-checkpoints", CHECKPOINTS_SIZE, "the buffer of checkpoints", e);
	if (s->checkpoint_fd < 0)
		return s->checkpoint_fd;
	const struct hv_checkpoints h = {
		.magic = HV_CHECKPOINTS_MAGIC, .record_size = sizeof(struct hv_checkpoint),
		.cap = (CHECKPOINTS_SIZE - sizeof h) / sizeof(struct hv_checkpoint),
	};
	if (pwrite(s->checkpoint_fd, &h, sizeof h, 0) != sizeof h)
		return err_sys(e, errno, "cannot make the buffer of checkpoints");
	return 0;
}

static int super_prepare(struct super *s, struct err *e)
{
	const struct super_config *cfg = s->cfg;
	int r = super_check_memory(cfg, e);
	if (r)
		return r;
	if (strlen(cfg->cmdline) >= sizeof((struct proto_vm_config *)0)->cmdline)
		return err_set(e, E2BIG, "cannot start the VM: the kernel command line is too long");
	s->kernel_fd = kernel_cache_get(cfg->kernel_fd, cfg->kernel_name, cfg->cache_dir, e);
	if (s->kernel_fd < 0)
		return s->kernel_fd;
	s->ram_fd = super_memfd("umbra-ram", cfg->memory, "the VM's memory", e);
	if (s->ram_fd < 0)
		return s->ram_fd;
	s->report_fd = super_memfd("umbra-report", REPORT_SIZE, "the report buffer", e);
	if (s->report_fd < 0)
		return s->report_fd;
	if (cfg->trace_fd >= 0) {
		r = super_prepare_trace(s, e);
		if (r)
			return r;
	}
	if (cfg->checkpoint_fd >= 0) {
		r = super_prepare_checkpoints(s, e);
		if (r)
			return r;
	}
	r = super_stream_pair(s->console, e);
	if (!r)
		r = super_stream_pair(s->agent, e);
	return r;
}

static int super_start_role(struct super *s, struct super_peer *p, struct spawn_config *cfg, struct spawn_fd *fds,
			    loop_fd_fn *fn, struct err *e)
{
	int sv[2];
	int r = msg_pair(sv);
	if (r)
		return err_sys(e, -r, "cannot make a socket");
	fds[cfg->n_fds++] = (struct spawn_fd){ sv[1], ROLE_FD_CONTROL };
	cfg->fds = fds;
	r = spawn_role(cfg, &p->proc, e);
	close(sv[1]);
	p->sock = sv[0];
	if (r)
		return r;
	r = loop_add(s->loop, p->sock, EPOLLIN, fn, s);
	if (!r)
		r = loop_add(s->loop, p->proc.pidfd, EPOLLIN, super_on_exit, s);
	return r ? err_sys(e, -r, "cannot watch the %s process", cfg->role) : 0;
}

static int super_start_session(struct super *s, struct err *e)
{
	struct spawn_fd fds[SPAWN_MAX_FDS] = {
		{ s->cfg->stdin_fd, 0 },  { s->cfg->stdout_fd, 1 },
		{ s->cfg->stderr_fd, 2 }, { s->console[1], SESSION_FD_CONSOLE },
		{ s->agent[1], SESSION_FD_AGENT },
	};
	struct spawn_config cfg = { .role = "session", .n_fds = 5 };
	if (s->cfg->session_fd >= 0)
		fds[cfg.n_fds++] = (struct spawn_fd){ s->cfg->session_fd, SESSION_FD_CONFIG };
	return super_start_role(s, &s->session, &cfg, fds, super_on_session, e);
}

static int super_send_config(struct super *s, struct err *e)
{
	const struct super_config *cfg = s->cfg;
	struct proto_vm_config c = {
		.memory = cfg->memory, .cpus = cfg->cpus, .engine = (u32)cfg->engine,
		.deterministic = cfg->deterministic, .has_initrd = cfg->initrd_fd >= 0, .has_trace = s->trace_fd >= 0,
		.verbose = (u8)cfg->verbose, .exit_by_vm = cfg->exit_by_vm, .det_seed = cfg->det_seed,
		.stop_at_insns = cfg->stop_at_insns, .trace_size = s->trace_size,
		.checkpoint_every = cfg->checkpoint_every, .checkpoint_from = cfg->checkpoint_from,
		.block_limit = cfg->block_limit, .translate_after = cfg->translate_after,
		.checkpoint_size = s->checkpoint_fd >= 0 ? CHECKPOINTS_SIZE : 0,
	};
	snprintf(c.cmdline, sizeof c.cmdline, "%s", cfg->cmdline);
	if (cfg->deterministic) {
		/* A fixed sequence (SplitMix64) from the seed. */
		u64 x = cfg->det_seed;
		for (unsigned i = 0; i < sizeof c.seed; i += 8) {
			u64 z = x += 0x9e3779b97f4a7c15ull;
			z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
			z = (z ^ z >> 27) * 0x94d049bb133111ebull;
			z ^= z >> 31;
			memcpy(c.seed + i, &z, sizeof z);
		}
	} else if (getrandom(c.seed, sizeof c.seed, 0) != sizeof c.seed) {
		return err_sys(e, errno, "cannot get random bytes");
	}
	struct tsc_info tsc;
	int r = tsc_calibrate(&s->tsc0, &tsc, e);
	if (r)
		return r;
	if (!tsc.invariant)
		log_info("the time-stamp counter is not invariant: guest time may be wrong");
	c.tsc_khz = tsc.khz;
	r = msg_send(s->vm.sock, PROTO_VM_CONFIG, &c, sizeof c, NULL, 0);
	/* A role that is gone already has a reason, which its pidfd and its last message tell. */
	return r && r != -EPIPE ? err_sys(e, -r, "cannot configure the VM") : 0;
}

static int super_start_vm(struct super *s, struct err *e)
{
	struct spawn_fd fds[SPAWN_MAX_FDS] = {
		{ s->ram_fd, VM_FD_RAM },         { s->kernel_fd, VM_FD_KERNEL },   { s->console[0], VM_FD_CONSOLE },
		{ s->agent[0], VM_FD_AGENT },     { s->report_fd, VM_FD_REPORT },
	};
	struct spawn_config cfg = { .role = "vm", .n_fds = 5, .new_session = true };
	if (s->cfg->initrd_fd >= 0)
		fds[cfg.n_fds++] = (struct spawn_fd){ s->cfg->initrd_fd, VM_FD_INITRD };
	if (s->trace_fd >= 0)
		fds[cfg.n_fds++] = (struct spawn_fd){ s->trace_fd, VM_FD_TRACE };
	if (s->checkpoint_fd >= 0)
		fds[cfg.n_fds++] = (struct spawn_fd){ s->checkpoint_fd, VM_FD_CHECKPOINTS };
	int r = super_start_role(s, &s->vm, &cfg, fds, super_on_vm, e);
	if (r)
		return r;
	/* Only the roles hold these now, so that each sees the other's end. */
	super_close(&s->console[0]);
	super_close(&s->console[1]);
	super_close(&s->agent[0]);
	super_close(&s->agent[1]);
	super_close(&s->ram_fd);
	super_close(&s->kernel_fd);
	return super_send_config(s, e);
}

static int super_start(struct super *s, struct err *e)
{
	int r = loop_create(&s->loop);
	if (r)
		return err_sys(e, -r, "cannot make the event loop");
	loop_timer_init(&s->timer, s->loop, super_on_timer, s);
	loop_timer_init(&s->timeout, s->loop, super_on_timeout, s);
	r = super_catch_signals(s, e);
	if (!r)
		r = super_start_session(s, e);
	if (!r)
		r = super_start_vm(s, e);
	if (!r && s->cfg->raw_tty) {
		r = terminal_raw(&s->tty, s->cfg->stdin_fd, e);
		super_send_winsize(s);
	}
	if (!r)
		super_phase_timer(s, SUPER_RUNNING, SUPER_READY_NS);
	if (!r && s->cfg->timeout_ns)
		loop_timer_set(&s->timeout, loop_now_ns() + s->cfg->timeout_ns);
	return r;
}

/* --- finish --- */

/* What the VM's own ending means for the status. */
static void super_judge(struct super *s)
{
	if (!s->vm_ended || s->have_status || s->res->error[0])
		return;
	const struct proto_vm_ended *x = &s->ended;
	const char *sep = x->text[0] ? ": " : "";
	bool by_vm = s->cfg->exit_by_vm;
	switch (x->ending) {
	case PROTO_END_INSN_LIMIT:
		super_set_status(s, 0);
		break;
	case PROTO_END_EXIT_CODE:
		if (by_vm)
			super_set_status(s, (int)(x->code & 0xff));
		else
			super_fail(s, "the VM ended: exit code %u before the command had ended", x->code);
		break;
	case PROTO_END_POWEROFF:
	case PROTO_END_RESET:
		if (by_vm)
			super_set_status(s, 0);
		else
			/* "the guest powered off" adds nothing; how else it did may. */
			super_fail(s, "the VM ended: the guest %s before the command had ended%s%s",
				   x->ending == PROTO_END_RESET ? "restarted" : "powered off",
				   strcmp(x->text, "the guest powered off") ? sep : "",
				   strcmp(x->text, "the guest powered off") ? x->text : "");
		break;
	case PROTO_END_TRIPLE_FAULT:
	case PROTO_END_ENGINE:
	case PROTO_END_PANIC:
	case PROTO_END_STOPPED:
	default:
		super_fail(s, "the VM ended%s%s", sep, x->text);
		break;
	}
}

static void super_write_report(struct super *s)
{
	if (!s->want_report || s->report_fd < 0)
		return;
	struct report *r = report_map(s->report_fd);
	if (!r)
		return;
	/* The process that wrote it is gone; what it left is hostile all the same: copied once, clamped. */
	u32 len = r->magic == REPORT_MAGIC ? r->len : 0;
	if (len > REPORT_SIZE - sizeof *r)
		len = (u32)(REPORT_SIZE - sizeof *r);
	char cause[sizeof r->cause];
	super_text(cause, sizeof cause, r->cause, sizeof r->cause);
	if (cause[0] && !s->vm_ended && s->res->error[0]) { /* it knew more than how it died */
		char how[sizeof s->res->error];
		snprintf(how, sizeof how, "%s", s->res->error);
		snprintf(s->res->error, sizeof s->res->error, "%.420s: %.300s", how, cause);
	}
	struct utsname u = { 0 };
	uname(&u);
	char header[2048];
	snprintf(header, sizeof header,
		 "umbra report\n\ncause:   %s\nkernel:  %s\ninitrd:  %s\ncmdline: %.800s\nmemory:  %llu MiB, %u CPU\n"
		 "host:    %s %s %s\nran for: %llu ms\nwriter:  %s\n",
		 s->res->error[0] ? s->res->error : cause, s->cfg->kernel_name, s->cfg->initrd_name ? s->cfg->initrd_name : "-", s->cfg->cmdline,
		 (unsigned long long)(s->cfg->memory / MiB), s->cfg->cpus, u.sysname, u.release, u.machine,
		 (unsigned long long)((loop_now_ns() - s->start_ns) / 1000000u),
		 r->complete ? "complete" : "the process died before it was complete");
	static char text[REPORT_SIZE + sizeof s->tail + 64];
	memcpy(text, r->text, len);
	if (s->tail_len) {
		static const char title[] = "\n== end of the console's output ==\n";
		memcpy(text + len, title, sizeof title - 1);
		len += (u32)sizeof title - 1;
		for (u32 i = 0; i < s->tail_len; i++)
			if (s->tail[i] != '\r')
				text[len++] = s->tail[i];
	}
	struct err e = { 0 };
	if (report_write_file(header, text, len, s->res->report, sizeof s->res->report, &e)) {
		log_warn("%s", e.text);
	} else if (s->res->error[0]) {
		size_t n = strlen(s->res->error);
		snprintf(s->res->error + n, sizeof s->res->error - n, " (report: %.400s)", s->res->report);
	}
	munmap(r, REPORT_SIZE);
}

static void super_write_checkpoints(const struct super *s)
{
	struct hv_checkpoints h;
	if (s->checkpoint_fd < 0 || pread(s->checkpoint_fd, &h, sizeof h, 0) != sizeof h)
		return;
	if (h.n > (CHECKPOINTS_SIZE - sizeof h) / sizeof(struct hv_checkpoint)) /* the vm process is not trusted */
		h.n = 0;
	copy_out(s->checkpoint_fd, s->cfg->checkpoint_fd, sizeof h + h.n * sizeof(struct hv_checkpoint), "checkpoints");
}

static void super_cleanup(struct super *s)
{
	struct super_peer *peers[] = { &s->vm, &s->session };
	for (unsigned i = 0; i < ARRAY_SIZE(peers); i++) {
		int wstatus;
		spawn_kill(&peers[i]->proc);
		spawn_reap(&peers[i]->proc, true, &wstatus);
		super_close(&peers[i]->sock);
	}
	terminal_restore(&s->tty);
	terminal_close(&s->tty);
	int *fds[] = { &s->ram_fd, &s->kernel_fd, &s->report_fd, &s->trace_fd, &s->checkpoint_fd, &s->console[0], &s->console[1],
		       &s->agent[0], &s->agent[1], &s->signal_fd };
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		super_close(fds[i]);
	loop_destroy(s->loop);
	if (s->masked)
		sigprocmask(SIG_SETMASK, &s->old_mask, NULL);
}

static u64 super_timeval_ns(struct timeval tv) { return (u64)tv.tv_sec * 1000000000u + (u64)tv.tv_usec * 1000u; }

int super_run(const struct super_config *cfg, struct super_result *res)
{
	*res = (struct super_result){ .status = SUPER_STATUS_FAILED };
	struct super *s = calloc(1, sizeof *s);
	if (!s) {
		snprintf(res->error, sizeof res->error, "cannot start the VM: out of memory");
		return res->status;
	}
	*s = (struct super){
		.cfg = cfg, .res = res, .vm = { .name = "vm", .sock = -1, .proc.pidfd = -1 },
		.session = { .name = "session", .sock = -1, .proc.pidfd = -1 }, .ram_fd = -1, .kernel_fd = -1,
		.report_fd = -1, .trace_fd = -1, .checkpoint_fd = -1, .console = { -1, -1 }, .agent = { -1, -1 }, .signal_fd = -1,
		.tty = { .fd = -1, .guard_sock = -1 },
	};
	s->start_ns = loop_now_ns();
	tsc_moment(&s->tsc0);
	struct rusage before, after;
	getrusage(RUSAGE_CHILDREN, &before);

	struct err e = { 0 };
	int r = super_prepare(s, &e);
	if (!r)
		r = super_start(s, &e);
	if (!r) {
		r = loop_run(s->loop);
		if (r)
			err_sys(&e, -r, "the event loop failed");
	}
	if (r)
		super_fail(s, "%s", e.text);
	super_judge(s);
	terminal_restore(&s->tty);
	super_write_report(s);
	if (s->trace_fd >= 0)
		copy_out(s->trace_fd, s->cfg->trace_fd, s->trace_size, "trace");
	super_write_checkpoints(s);
	super_cleanup(s);

	getrusage(RUSAGE_CHILDREN, &after);
	super_stat(s, "wall_ns", loop_now_ns() - s->start_ns);
	super_stat(s, "boot_ns", s->boot_ns);
	super_stat(s, "cpu_user_ns", super_timeval_ns(after.ru_utime) - super_timeval_ns(before.ru_utime));
	super_stat(s, "cpu_system_ns", super_timeval_ns(after.ru_stime) - super_timeval_ns(before.ru_stime));
	if (s->have_status)
		res->status = s->status;
	else if (!res->error[0])
		snprintf(res->error, sizeof res->error, "the VM ended without a reason");
	free(s);
	return res->status;
}
