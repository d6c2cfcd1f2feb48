// Package netopt opens listening sockets with the backlog that was asked for
// and tells what the kernel does with their queues.
//
// net.Listen gives a listener whatever net.core.somaxconn is and says nothing.
// Listen here calls listen(2) with the backlog of its caller, reads back what
// the kernel made of it, and fails if that is less. The Listener it returns
// reports the depth of its accept queue, the exact peak, and the connections
// that this socket dropped. Everything it reads needs no privilege. Linux only.
package netopt
