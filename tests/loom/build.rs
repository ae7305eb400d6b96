//! Has this package, and none that it depends on, compiled with `cfg(loom)`.

fn main() {
    println!("cargo::rustc-cfg=loom");
}
