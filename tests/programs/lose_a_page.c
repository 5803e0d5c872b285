/* A guest's program that uses a DAX device while the host loses one page of
 * it: it gets SIGBUS for that page, and its other pages are whole.
 *
 * Prints "in use" once every page has a mark of its own. Exit status 0 if it
 * was as it should be.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define SIZE (2 << 20)
#define VICTIM 3
/* Looks at the victim, and how long between them. */
#define LOOKS 1200
#define PAUSE_US 50000

static sigjmp_buf out;
static volatile sig_atomic_t code;
static char *volatile address;
static volatile int shift;

static void on_bus(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	code = info->si_code;
	address = info->si_addr;
	shift = info->si_addr_lsb;
	siglongjmp(out, 1);
}

static uint64_t mark(int page)
{
	return 0x5a00000000000000u | (uint64_t)page << 8 | 0x77;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	int fd = open(argc > 1 ? argv[1] : "/dev/dax0.0", O_RDWR);
	char *memory = fd < 0 ? NULL :
		mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (fd < 0 || memory == MAP_FAILED) {
		perror(fd < 0 ? "open" : "mmap");
		return 2;
	}
	for (int page = 0; page < SIZE / PAGE; page++)
		*(volatile uint64_t *)(memory + page * PAGE) = mark(page);
	sigaction(SIGBUS, &action, NULL);
	printf("lose-a-page: in use\n");
	fflush(stdout);

	if (sigsetjmp(out, 1) == 0) {
		for (int look = 0; look < LOOKS; look++) {
			uint64_t word = *(volatile uint64_t *)(memory + VICTIM * PAGE);
			if (word != mark(VICTIM)) {
				printf("lose-a-page: the lost page reads as %#llx\n",
				       (unsigned long long)word);
				return 3;
			}
			usleep(PAUSE_US);
		}
		printf("lose-a-page: nothing was lost\n");
		return 4;
	}
	/* The kernel speaks of the whole of a mapping of 2 MiB. */
	printf("lose-a-page: SIGBUS code %d, %d bits, %s\n", (int)code, shift,
	       (uintptr_t)address >> shift == (uintptr_t)(memory + VICTIM * PAGE) >> shift ?
	       "where the page is" : "elsewhere");
	if (sigsetjmp(out, 1) == 0) {
		for (int page = 0; page < SIZE / PAGE; page++) {
			if (page == VICTIM)
				continue;
			if (*(volatile uint64_t *)(memory + page * PAGE) != mark(page)) {
				printf("lose-a-page: page %d is wrong\n", page);
				return 5;
			}
		}
	} else {
		printf("lose-a-page: another page is lost at offset %#lx\n",
		       (unsigned long)(address - memory));
		return 6;
	}
	printf("lose-a-page: the others are whole\n");
	return 0;
}
