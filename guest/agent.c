/* The guest agent: PID 1 of a guest that umbra started for one command.  Makes
 * the usual file systems and devices, then serves the host's one request over
 * the second serial port and powers the machine off.
 *
 * "agent --serve FD", not as PID 1, serves on a descriptor and touches nothing
 * else: for tests. */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"
#include "core/agent_proto.h"

#define LINK_TTY "/dev/ttyS1"

static const struct {
	const char *dir, *type, *options;
	unsigned long flags;
	mode_t mode;
} mounts[] = {
	{ "/proc", "proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0555 },
	{ "/sys", "sysfs", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, 0555 },
	{ "/dev", "devtmpfs", "mode=755", MS_NOSUID, 0755 },
	{ "/dev/pts", "devpts", "mode=620,gid=5,ptmxmode=666", MS_NOSUID | MS_NOEXEC, 0755 },
	{ "/dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV, 01777 },
	{ "/run", "tmpfs", "mode=755", MS_NOSUID | MS_NODEV, 0755 },
	{ "/tmp", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV, 01777 },
};

/* What devtmpfs does not make. */
static const struct { const char *link, *to; } links[] = {
	{ "/dev/fd", "/proc/self/fd" },
	{ "/dev/stdin", "/proc/self/fd/0" },
	{ "/dev/stdout", "/proc/self/fd/1" },
	{ "/dev/stderr", "/proc/self/fd/2" },
};

/* To the kernel's log, which reaches the console at this level even with "quiet". */
static void complain(const char *what, const char *why)
{
	char line[600];
	int n = snprintf(line, sizeof line, "<2>umbra agent: %s: %s\n", what, why);
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		fd = 2;
	if (n > 0 && write(fd, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1) < 0)
		return; /* nowhere else to say it */
	if (fd > 2)
		close(fd);
}

static _Noreturn void power_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	reboot(RB_AUTOBOOT); /* no ACPI: umbra takes a reset as an end, too */
	for (;;)
		pause();
}

static void set_up(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(mounts); i++) {
		if (mkdir(mounts[i].dir, mounts[i].mode) && errno != EEXIST)
			complain(mounts[i].dir, strerror(errno));
		if (mount(mounts[i].type, mounts[i].dir, mounts[i].type, mounts[i].flags, mounts[i].options))
			complain(mounts[i].dir, strerror(errno));
	}
	for (unsigned i = 0; i < ARRAY_SIZE(links); i++)
		if (symlink(links[i].to, links[i].link) && errno != EEXIST)
			complain(links[i].link, strerror(errno));
	/* The loopback interface; the kernel gives it its address when it comes up. */
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	if (s >= 0 && ioctl(s, SIOCSIFFLAGS, &ifr))
		complain("lo", strerror(errno));
	if (s >= 0)
		close(s);
	/* Packed beside a user's tree (--root): leave no trace in it.  The running file stays as long as we do. */
	unlink("/.umbra/agent");
	rmdir("/.umbra");
}

static bool kernel_parameter(const char *word)
{
	char line[4096];
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
	if (fd >= 0)
		close(fd);
	if (n < 0)
		return false;
	line[n] = 0;
	for (char *p = strtok(line, " \n"); p; p = strtok(NULL, " \n"))
		if (!strcmp(p, word))
			return true;
	return false;
}

void agent_console_shell(void)
{
	pid_t pid = fork();
	if (!pid) {
		setsid();
		int fd = open("/dev/ttyS0", O_RDWR);
		if (fd < 0)
			fd = open("/dev/console", O_RDWR);
		ioctl(fd, TIOCSCTTY, 0);
		for (int i = 0; i < 3; i++)
			dup2(fd, i);
		if (fd > 2)
			close(fd);
		setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
		setenv("HOME", "/root", 1);
		setenv("TERM", "linux", 0);
		execl("/bin/bash", "-bash", NULL);
		execl("/bin/sh", "-sh", NULL);
		complain("/bin/sh", strerror(errno));
		_exit(127);
	}
	for (pid_t p; (p = wait(NULL)) != pid;)
		if (p < 0 && errno != EINTR)
			break;
}

/* The command, when it came with the initramfs: malloced, with its length; NULL: it comes over the link. */
static void *embedded_run(u32 *len)
{
	int fd = open(AGENT_RUN_FILE, O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (fd < 0)
		return NULL;
	void *p = !fstat(fd, &st) && st.st_size <= (off_t)AGENT_RUN_MAX ? malloc((size_t)st.st_size + 1) : NULL;
	*len = (u32)st.st_size;
	if (p && read(fd, p, *len) != (ssize_t)*len) {
		free(p);
		p = NULL;
	}
	close(fd);
	unlink(AGENT_RUN_FILE);
	return p;
}

static const char *serve_tty(void *run, u32 run_len)
{
	int fd = open(LINK_TTY, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return strerror(errno);
	struct termios t;
	if (tcgetattr(fd, &t))
		return strerror(errno);
	cfmakeraw(&t);
	/* No CRTSCTS: nothing overruns, by the protocol's own credit. */
	t.c_cflag = CS8 | CREAD | CLOCAL;
	cfsetspeed(&t, B115200);
	if (tcsetattr(fd, TCSANOW, &t))
		return strerror(errno);
	const char *bad = agent_serve(fd, run, run_len);
	tcdrain(fd);
	return bad;
}

int main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 3 && !strcmp(argv[1], "--serve")) {
		const char *bad = agent_serve(atoi(argv[2]), NULL, 0);
		if (bad)
			fprintf(stderr, "agent: %s\n", bad);
		return bad ? 1 : 0;
	}
	if (getpid() != 1) {
		fputs("agent: runs as PID 1 of umbra's guests only\n", stderr);
		return 2;
	}
	u32 run_len = 0;
	void *run = embedded_run(&run_len);
	umask(0);
	set_up();
	umask(022);
	if (kernel_parameter("umbra.console")) {
		agent_console_shell();
	} else {
		const char *bad = serve_tty(run, run_len);
		if (bad)
			complain(LINK_TTY, bad);
	}
	power_off();
}
