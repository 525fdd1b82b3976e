#include "super/terminal.h"

#include <errno.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "core/msg.h"
#include "super/proto.h"

bool terminal_size(int fd, u16 *rows, u16 *cols)
{
	struct winsize ws;
	if (ioctl(fd, TIOCGWINSZ, &ws))
		return false;
	*rows = ws.ws_row;
	*cols = ws.ws_col;
	return true;
}

static int terminal_start_guard(struct terminal *t, struct err *e)
{
	int sv[2];
	int r = msg_pair(sv);
	if (r)
		return err_sys(e, -r, "cannot guard the terminal");
	const struct spawn_fd fds[] = { { t->fd, 0 }, { sv[1], ROLE_FD_CONTROL } };
	const struct spawn_config cfg = {
		.role = "ttyguard", .fds = fds, .n_fds = ARRAY_SIZE(fds), .new_session = true, .outlive = true,
	};
	r = spawn_role(&cfg, &t->guard, e);
	close(sv[1]);
	if (!r) {
		r = msg_send(sv[0], PROTO_TTY_SAVED, &t->saved, sizeof t->saved, NULL, 0);
		if (r)
			err_sys(e, -r, "cannot guard the terminal");
	}
	if (r) {
		close(sv[0]);
		return r;
	}
	t->guard_sock = sv[0];
	return 0;
}

/* TCSADRAIN from a background process group would stop us: the signal is
 * blocked, then the kernel lets the call pass. */
static int terminal_set(int fd, const struct termios *tio)
{
	sigset_t ttou, old;
	sigemptyset(&ttou);
	sigaddset(&ttou, SIGTTOU);
	sigprocmask(SIG_BLOCK, &ttou, &old);
	int r;
	do
		r = tcsetattr(fd, TCSADRAIN, tio) ? -errno : 0;
	while (r == -EINTR);
	sigprocmask(SIG_SETMASK, &old, NULL);
	return r;
}

int terminal_raw(struct terminal *t, int fd, struct err *e)
{
	*t = (struct terminal){ .fd = fd, .guard_sock = -1 };
	if (tcgetattr(fd, &t->saved))
		return err_sys(e, errno, "cannot use the terminal");
	int r = terminal_start_guard(t, e);
	if (r)
		return r;
	struct termios raw = t->saved;
	cfmakeraw(&raw);
	t->raw = true;
	r = terminal_set(fd, &raw);
	if (r) {
		terminal_restore(t);
		terminal_close(t);
		return err_sys(e, -r, "cannot use the terminal");
	}
	return 0;
}

void terminal_restore(struct terminal *t)
{
	if (!t->raw)
		return;
	t->raw = false;
	terminal_set(t->fd, &t->saved);
}

void terminal_close(struct terminal *t)
{
	if (!t->guard.pid)
		return;
	msg_send(t->guard_sock, PROTO_TTY_DONE, NULL, 0, NULL, 0);
	close(t->guard_sock);
	t->guard_sock = -1;
	int wstatus;
	spawn_reap(&t->guard, true, &wstatus);
}
