//! Who is where: Docker's containers and networks, the kernel's links and addresses, read into one pure snapshot.
//! Events only say "look again"; the lists are the truth.

pub mod snapshot;
