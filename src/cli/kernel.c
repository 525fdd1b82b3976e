/* umbra kernel list | fetch.
 *
 * fetch takes the distribution's own package through apt's own tools, so that
 * apt's signature check applies, and unpacks it with dpkg-deb into the user's
 * data directory: nothing is installed and no rights are needed.  It is done in
 * a hidden directory beside the result, which appears by one rename. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <json-c/json.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/kernels.h"

extern char **environ;

static int list_kernels(bool json)
{
	struct kernel_found *k;
	unsigned n = kernels_list(&k);
	if (json) {
		struct json_object *a = json_object_new_array();
		for (unsigned i = 0; i < n; i++) {
			struct json_object *o = json_object_new_object();
			json_object_object_add(o, "release", json_object_new_string(k[i].release));
			json_object_object_add(o, "path", json_object_new_string(k[i].path));
			json_object_object_add(o, "modules", *k[i].modules ? json_object_new_string(k[i].modules) : NULL);
			json_object_object_add(o, "fetched", json_object_new_boolean(k[i].fetched));
			json_object_object_add(o, "readable", json_object_new_boolean(k[i].readable));
			json_object_object_add(o, "size", json_object_new_int64((int64_t)k[i].size));
			json_object_array_add(a, o);
		}
		puts(json_object_to_json_string_ext(a, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
		json_object_put(a);
	} else if (!n) {
		fputs("no guest kernel found (get one: umbra kernel fetch)\n", stderr);
	} else {
		printf("%-28s %-9s %-8s %s\n", "RELEASE", "SIZE", "MODULES", "IMAGE");
		for (unsigned i = 0; i < n; i++)
			printf("%-28s %-9.1f %-8s %s%s\n", k[i].release, (double)k[i].size / 1048576,
			       *k[i].modules ? "yes" : "no", k[i].path, k[i].readable ? "" : " (not readable)");
	}
	free(k);
	if (fflush(stdout))
		return cli_error("kernel list: cannot write: %s", strerror(errno));
	return 0;
}

/* Runs argv in directory dir.  With out, stdout goes into it (a malloced string), else to our stderr; with quiet,
 * the command's stderr is dropped.  Returns its exit status, -1 when it cannot be started. */
static int command(const char *dir, char *const argv[], char **out, bool quiet)
{
	int p[2] = { -1, -1 };
	if (out && pipe2(p, O_CLOEXEC))
		return -1;
	posix_spawn_file_actions_t fa;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&fa, out ? p[1] : 2, 1);
	if (quiet)
		posix_spawn_file_actions_addopen(&fa, 2, "/dev/null", O_WRONLY, 0);
	if (dir)
		posix_spawn_file_actions_addchdir_np(&fa, dir);
	pid_t pid;
	int r = posix_spawnp(&pid, argv[0], &fa, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	if (out)
		close(p[1]);
	if (out && !r) {
		FILE *f = fdopen(p[0], "r");
		size_t cap = 0;
		*out = NULL;
		if (!f || getdelim(out, &cap, 0, f) < 0) {
			free(*out);
			*out = strdup("");
		}
		if (f)
			fclose(f);
	} else if (out) {
		close(p[0]);
	}
	if (r)
		return -1;
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	remove(path);
	return 0;
}

static void remove_tree(const char *path) { nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static int make_dirs(char *path)
{
	for (char *p = path + 1; *p; p++)
		if (*p == '/') {
			*p = 0;
			int r = mkdir(path, 0777);
			*p = '/';
			if (r && errno != EEXIST)
				return -1;
		}
	return mkdir(path, 0777) && errno != EEXIST ? -1 : 0;
}

/* Words for -o options of a private apt state in dir: for a user whose host has no package lists. */
struct apt {
	char dash_o[3];
	char *opt[8]; /* "-o", value pairs; empty: the host's own state */
	char text[4][PATH_MAX + 64];
	unsigned n;
};

static void apt_private(struct apt *a, const char *dir)
{
	strcpy(a->dash_o, "-o");
	static const char *const name[] = { "Dir::State", "Dir::Cache", "Dir::State::status", "APT::Sandbox::User" };
	snprintf(a->text[0], sizeof a->text[0], "%s=%s/apt-state", name[0], dir);
	snprintf(a->text[1], sizeof a->text[1], "%s=%s/apt-cache", name[1], dir);
	snprintf(a->text[2], sizeof a->text[2], "%s=/var/lib/dpkg/status", name[2]);
	snprintf(a->text[3], sizeof a->text[3], "%s=", name[3]);
	for (unsigned i = 0; i < 4; i++) {
		a->opt[2 * i] = a->dash_o;
		a->opt[2 * i + 1] = a->text[i];
	}
	a->n = 8;
}

static int apt_run(struct apt *a, const char *dir, const char *tool, char *const words[], char **out, bool quiet)
{
	char *argv[32];
	unsigned n = 0;
	argv[n++] = (char *)(uintptr_t)tool;
	for (unsigned i = 0; i < a->n; i++)
		argv[n++] = a->opt[i];
	for (unsigned i = 0; words[i] && n < ARRAY_SIZE(argv) - 1; i++)
		argv[n++] = words[i];
	argv[n] = NULL;
	return command(dir, argv, out, quiet);
}

/* The package with the image that a meta package depends on; the name itself when it is not a meta package. */
static bool resolve(struct apt *a, const char *name, char *package, size_t size)
{
	char *out = NULL;
	char *words[] = { (char[]){ "depends" }, (char *)(uintptr_t)name, NULL };
	bool ok = !apt_run(a, NULL, "apt-cache", words, &out, true) && out && *out;
	if (ok) {
		snprintf(package, size, "%s", name);
		for (char *line = strtok(out, "\n"); line; line = strtok(NULL, "\n")) {
			char *p = strstr(line, "Depends: linux-image-");
			if (p && line[strspn(line, " |")] == 'D')
				snprintf(package, size, "%s", p + strlen("Depends: "));
		}
	}
	free(out);
	return ok;
}

static bool exists(const char *dir, const char *name)
{
	char path[PATH_MAX + 160];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	return !access(path, F_OK);
}

/* Moves what a run needs out of the unpacked package into dir/out. */
static int arrange(const char *tmp, const char *release)
{
	char from[PATH_MAX + 400], to[PATH_MAX + 400];
	static const char *const boot[][2] = { { "vmlinuz", "vmlinuz" }, { "config", "config" }, { "System.map", "System.map" } };
	snprintf(to, sizeof to, "%s/out", tmp);
	if (mkdir(to, 0777))
		return -1;
	for (unsigned i = 0; i < ARRAY_SIZE(boot); i++) {
		snprintf(from, sizeof from, "%s/pkg/boot/%s-%s", tmp, boot[i][0], release);
		snprintf(to, sizeof to, "%s/out/%s", tmp, boot[i][1]);
		if (rename(from, to) && i == 0)
			return -1;
	}
	chmod(to, 0644); /* System.map is root's alone in the package */
	static const char *const modules[] = { "lib/modules", "usr/lib/modules" };
	snprintf(to, sizeof to, "%s/out/modules", tmp);
	for (unsigned i = 0; i < ARRAY_SIZE(modules); i++) {
		snprintf(from, sizeof from, "%s/pkg/%s/%s", tmp, modules[i], release);
		if (!rename(from, to))
			break;
	}
	return 0;
}

static int fetch_into(const char *dir, const char *tmp, const char *name)
{
	struct apt a = { 0 };
	char package[160], full[160], pkgdir[PATH_MAX + 64];
	if (!strcmp(name, "cloud") || !strcmp(name, "amd64"))
		snprintf(full, sizeof full, "linux-image-%s", strcmp(name, "cloud") ? "amd64" : "cloud-amd64");
	else
		snprintf(full, sizeof full, "%s%s", strncmp(name, "linux-image-", 12) ? "linux-image-" : "", name);
	if (!resolve(&a, full, package, sizeof package)) {
		/* No package lists on this host (fresh containers), or they lack it: fetch lists of our own. */
		char state[PATH_MAX + 64];
		static const char *const sub[] = { "apt-state/lists/partial", "apt-cache/archives/partial" };
		for (unsigned i = 0; i < ARRAY_SIZE(sub); i++) {
			snprintf(state, sizeof state, "%s/%s", tmp, sub[i]);
			make_dirs(state);
		}
		apt_private(&a, tmp);
		char *update[] = { (char[]){ "-q" }, (char[]){ "update" }, NULL };
		if (apt_run(&a, tmp, "apt-get", update, NULL, true) || !resolve(&a, full, package, sizeof package))
			return cli_error("kernel fetch: no package %s in apt's sources (see apt-cache search linux-image)", full);
	}
	const char *release = package + strlen("linux-image-");
	if (exists(dir, release)) {
		printf("%s is there\n", release);
		return 0;
	}
	fprintf(stderr, "fetching %s\n", package);
	snprintf(pkgdir, sizeof pkgdir, "%s/pkg", tmp);
	char *download[] = { (char[]){ "-q" }, (char[]){ "-o" }, (char[]){ "APT::Sandbox::User=" },
			     (char[]){ "download" }, package, NULL };
	int r = apt_run(&a, tmp, "apt-get", download, NULL, true);
	if (r)
		return cli_error("kernel fetch: apt-get download %s failed with status %d (network? try it by hand)", package, r);
	char deb[PATH_MAX + 300] = "";
	DIR *d = opendir(tmp);
	for (struct dirent *e; d && (e = readdir(d));) {
		size_t n = strlen(e->d_name);
		if (n > 4 && !strcmp(e->d_name + n - 4, ".deb"))
			snprintf(deb, sizeof deb, "%s/%s", tmp, e->d_name);
	}
	if (d)
		closedir(d);
	char *unpack[] = { (char[]){ "dpkg-deb" }, (char[]){ "-x" }, deb, pkgdir, NULL };
	if (!*deb || (r = command(tmp, unpack, NULL, false)))
		return cli_error("kernel fetch: dpkg-deb cannot unpack %s (disk full?)", package);
	if (arrange(tmp, release))
		return cli_error("kernel fetch: package %s holds no boot/vmlinuz-%s (name another)", package, release);
	char from[PATH_MAX + 64], to[PATH_MAX + 160];
	snprintf(from, sizeof from, "%s/out", tmp);
	snprintf(to, sizeof to, "%s/%s", dir, release);
	if (rename(from, to) && errno != EEXIST && errno != ENOTEMPTY)
		return cli_error("kernel fetch: cannot make %s: %s", to, strerror(errno));
	printf("%s\n", to);
	return 0;
}

static int fetch(const char *name)
{
	if (!*name || strlen(name) > 120 || name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.+-")] || name[0] == '-')
		return cli_error("kernel fetch: %s is not the name of a package (cloud, amd64 or linux-image-…)", name);
	char dir[PATH_MAX], tmp[PATH_MAX + 32];
	if (!kernels_dir(dir))
		return cli_error("kernel fetch: no data directory (set HOME or XDG_DATA_HOME)");
	if (make_dirs(dir))
		return cli_error("kernel fetch: cannot make %s: %s (set XDG_DATA_HOME)", dir, strerror(errno));
	snprintf(tmp, sizeof tmp, "%s/.fetch-XXXXXX", dir);
	if (!mkdtemp(tmp))
		return cli_error("kernel fetch: cannot make a directory in %s: %s", dir, strerror(errno));
	int r = fetch_into(dir, tmp, name);
	remove_tree(tmp);
	return r;
}

int cli_kernel_main(const struct cli_verb *self, int argc, char **argv)
{
	enum { OPT_JSON = 256, OPT_HELP };
	static const struct option options[] = {
		{ "json", no_argument, NULL, OPT_JSON }, { "help", no_argument, NULL, OPT_HELP }, { 0 }
	};
	bool json = false;
	for (int c; (c = getopt_long(argc, argv, ":h", options, NULL)) >= 0;)
		switch (c) {
		case OPT_JSON: json = true; break;
		case 'h':
		case OPT_HELP: return cli_help(self);
		default: return cli_bad_option(self, argc, argv, c);
		}
	if (optind == argc)
		return cli_error("kernel: list or fetch? (see umbra kernel --help)");
	const char *what = argv[optind++];
	if (!strcmp(what, "list")) {
		if (optind < argc)
			return cli_error("kernel list: takes no argument, got %s", argv[optind]);
		return list_kernels(json);
	}
	if (strcmp(what, "fetch"))
		return cli_error("kernel: no such action: %s (list or fetch)", what);
	if (optind == argc)
		return fetch("cloud");
	int r = 0;
	while (optind < argc && !r)
		r = fetch(argv[optind++]);
	return r;
}
