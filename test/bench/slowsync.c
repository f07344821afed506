/*
 * slowsync.c
 *		A disk as slow as one likes: preloaded into a server, it makes fsync and
 *		fdatasync take longer.
 *
 * The delay is the number of microseconds that the file named by SLOWSYNC_FILE
 * contains, so it can be changed while the server runs. It comes after the real
 * call, as with a disk that has the data late; nothing is skipped.
 *
 *		cc -shared -fPIC -o slowsync.so slowsync.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long
delay_us(void)
{
	const char *name = getenv("SLOWSYNC_FILE");
	char text[32];
	ssize_t n = -1;
	int fd;

	if (name == NULL)
		return 0;
	fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	return atol(text);
}

/* what the real call returned, and its errno, but later */
static int
later(int result)
{
	int saved_errno = errno;
	long us = delay_us();
	struct timespec rest;

	rest.tv_sec = us / 1000000;
	rest.tv_nsec = us % 1000000 * 1000;
	/* a signal does not make a disk faster */
	while (us > 0 && nanosleep(&rest, &rest) < 0 && errno == EINTR)
		;
	errno = saved_errno;
	return result;
}

int
fsync(int fd)
{
	static int (*real)(int);

	if (real == NULL)
		real = (int (*)(int)) dlsym(RTLD_NEXT, "fsync");
	return later(real(fd));
}

int
fdatasync(int fd)
{
	static int (*real)(int);

	if (real == NULL)
		real = (int (*)(int)) dlsym(RTLD_NEXT, "fdatasync");
	return later(real(fd));
}
