/* SPDX-License-Identifier: Apache-2.0 */
/*
 * get_kmb: the control requests that the NVIDIA driver takes, on a file that takes
 * none.
 *
 * 7 ask for a channel's keys, 5 for something else, 3 have another number, and one has
 * its parameters where nothing is mapped.
 */
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>

struct control {
	uint32_t client;
	uint32_t object;
	uint32_t command;
	uint32_t flags;
	uint64_t parameters;
	uint32_t size_bytes;
	uint32_t status;
};

#define RM_CONTROL _IOWR('F', 0x2a, struct control)
#define RM_OTHER _IOWR('F', 0x2b, struct control)

int main(void)
{
	struct control keys = {.command = 0xc56f010b}, other = {.command = 0xc56f010a};
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int i = 0; i < 7; i++)
		ioctl(fd, RM_CONTROL, &keys);
	for (int i = 0; i < 5; i++)
		ioctl(fd, RM_CONTROL, &other);
	for (int i = 0; i < 3; i++)
		ioctl(fd, RM_OTHER, &keys);
	ioctl(fd, RM_CONTROL, (void *)4096);
	return fd < 0;
}
