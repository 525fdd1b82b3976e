/* The processes umbra consists of: one line per role in roles.c says what it
 * runs and what it may do.  A role is this executable with --role=NAME. */
#ifndef ROLES_ROLES_H
#define ROLES_ROLES_H

#include "core/base.h"
#include "core/sandbox.h"

struct role {
	const char *name;
	int (*main)(const struct role *role);
	const struct sandbox_policy *policy;
};

extern const struct role roles[];
extern const unsigned roles_n;
const struct role *role_find(const char *name);

/* From main(): when argv[1] starts with "--role=", return role_main(argv[1] + 7). */
int role_main(const char *name);

/* Entry points. */
int role_vm(const struct role *role);
int role_extract(const struct role *role);
int role_ttyguard(const struct role *role);
int role_session(const struct role *role); /* src/session */

/* The policies (policy.c), also for tests/sandbox. */
extern const struct sandbox_policy policy_vm, policy_extract, policy_session, policy_ttyguard;

/* For a role that cannot go on while it sets up: PROTO_FAILED to the supervisor; exits with 125. */
_Noreturn void role_fail(int errnum, const char *text);

/* Log lines of this role go to the supervisor as PROTO_LOG. */
void role_log_to_supervisor(void);

#endif
