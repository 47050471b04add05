//! The server without a mount: real images, real threads, the public interface of the library.

mod bed;
mod cycle;
mod refusals;
