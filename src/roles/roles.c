#include "roles/roles.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"
#include "super/proto.h"
#include "super/super.h"

const struct role roles[] = {
	{ "vm", role_vm, &policy_vm },
	{ "session", role_session, &policy_session },
	{ "extract", role_extract, &policy_extract },
	{ "ttyguard", role_ttyguard, &policy_ttyguard },
};
const unsigned roles_n = ARRAY_SIZE(roles);

const struct role *role_find(const char *name)
{
	for (unsigned i = 0; i < roles_n; i++)
		if (!strcmp(roles[i].name, name))
			return &roles[i];
	return NULL;
}

int role_main(const char *name)
{
	const struct role *role = role_find(name);
	if (!role) {
		fprintf(stderr, "umbra: cannot start a role: there is none of the name '%.32s'\n", name);
		return SUPER_STATUS_FAILED;
	}
	return role->main(role);
}
