/* The names of the kit's functions are also libc's. */
#define socket kit_socket
#define bind kit_bind
#define listen kit_listen
#define accept kit_accept
#define connect kit_connect
#define send kit_send
#define recv kit_recv
#define sendto kit_sendto
#define recvfrom kit_recvfrom
#define shutdown kit_shutdown
#define close kit_close
#define crc32 kit_crc32
