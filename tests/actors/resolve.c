/* Looks a name up as the C library does and prints the first address; 1: it has none. Built static, with another C library. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>

int main(int count, char **words)
{
	struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *found;
	char text[INET_ADDRSTRLEN];
	int error;

	if (count != 2)
		return 2;
	error = getaddrinfo(words[1], "8080", &hints, &found);
	if (error) {
		puts(gai_strerror(error));
		return 1;
	}
	puts(inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof(text)));
	return 0;
}
