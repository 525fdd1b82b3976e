/* Puts the user's terminal back when the supervisor dies without being able
 * to (SIGKILL).  It reads nothing but the supervisor's own words. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "roles/roles.h"
#include "super/proto.h"

int role_ttyguard(const struct role *role)
{
	/* The whole process group may be signalled; this one stays until the supervisor is gone. */
	static const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTTOU, SIGTTIN, SIGTSTP, SIGPIPE };
	for (unsigned i = 0; i < ARRAY_SIZE(ignored); i++)
		signal(ignored[i], SIG_IGN);
	struct err e = { 0 };
	struct sandbox_layers layers;
	if (sandbox_prepare(role->policy, &layers, &e) || sandbox_enter(role->policy, &layers, &e))
		return 125;
	struct termios saved;
	bool have = false;
	static struct msg m;
	for (;;) {
		int r = msg_recv(ROLE_FD_CONTROL, &m, proto_to_ttyguard, proto_to_ttyguard_n, false);
		if (r == 1 && m.type == PROTO_TTY_SAVED) {
			memcpy(&saved, m.body, sizeof saved);
			have = true;
			continue;
		}
		if (r != 1 && have) /* hang-up before PROTO_TTY_DONE */
			while (tcsetattr(0, TCSADRAIN, &saved) && errno == EINTR)
				;
		return 0;
	}
}
