// Package e2e tests the built weir binary from outside: real senders on real
// sockets, kills, full disks, network namespaces with small limits. It holds
// no code of weir itself.
package e2e
