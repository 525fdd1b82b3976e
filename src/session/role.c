/* Start of the session role: read the configuration, be confined, serve. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "roles/roles.h"
#include "session/session.h"
#include "super/proto.h"

static bool read_all(int fd, void *p, size_t n, off_t at)
{
	for (size_t done = 0; done < n;) {
		ssize_t r = pread(fd, (char *)p + done, n - done, at + (off_t)done);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return false;
		done += (size_t)r;
	}
	return true;
}

int role_session(const struct role *role)
{
	struct sandbox_layers layers;
	struct err e = { 0 };
	int r = sandbox_prepare(role->policy, &layers, &e);
	if (r)
		role_fail(-r, e.text);
	struct session_config cfg;
	if (!read_all(SESSION_FD_CONFIG, &cfg, sizeof cfg, 0) || cfg.magic != SESSION_CONFIG_MAGIC ||
	    cfg.run_len > AGENT_RUN_MAX)
		role_fail(EINVAL, "the session's configuration is not readable");
	void *run = malloc(cfg.run_len + 1);
	if (!run || !read_all(SESSION_FD_CONFIG, run, cfg.run_len, sizeof cfg))
		role_fail(EINVAL, "the session's configuration is not complete");
	close(SESSION_FD_CONFIG);
	const struct session_fds fds = { .in = 0, .out = 1, .err = 2, .control = ROLE_FD_CONTROL,
					 .console = SESSION_FD_CONSOLE, .agent = SESSION_FD_AGENT };
	session_init(&fds, &cfg, run);
	r = sandbox_enter(role->policy, &layers, &e);
	if (r)
		role_fail(-r, e.text);
	session_loop();
	return 0;
}
