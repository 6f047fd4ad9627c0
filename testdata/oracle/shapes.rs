// What rustc makes: texts without terminators, tables of them, trait objects, panics with places, formatting.
use std::collections::BTreeMap;
use std::fmt;

pub trait Shape { fn area(&self) -> f64; fn name(&self) -> &'static str; }
pub struct Square(f64);
pub struct Circle(f64);
impl Shape for Square { fn area(&self) -> f64 { self.0 * self.0 } fn name(&self) -> &'static str { "square" } }
impl Shape for Circle { fn area(&self) -> f64 { self.0 * self.0 * 3.14159 } fn name(&self) -> &'static str { "circle" } }

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Color { Red, Green, Blue, Yellow, Violet, Orange }

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(word(*self as usize)) }
}

#[inline(never)]
pub fn word(n: usize) -> &'static str {
    match n { 0 => "red", 1 => "green", 2 => "blue", 3 => "yellow", 4 => "violet", 5 => "orange", _ => "unknown" }
}

static NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
static mut COUNT: usize = 0;
const PRIMES: [u32; 8] = [2, 3, 5, 7, 11, 13, 17, 19];

#[inline(never)]
pub fn pick(n: usize) -> String {
    unsafe { COUNT += 1; }
    format!("{} of {} and {:?}", NAMES[n % 4], PRIMES[n & 7], Color::Blue)
}

#[inline(never)]
pub fn parse(text: &str) -> Result<i32, String> {
    match text {
        "one" => Ok(1), "two" => Ok(2), "three hundred and four" => Ok(304),
        _ => text.parse::<i32>().map_err(|e| format!("not a number: {e}")),
    }
}

fn main() {
    let shapes: Vec<Box<dyn Shape>> = vec![Box::new(Square(2.0)), Box::new(Circle(1.5))];
    let mut totals: BTreeMap<&'static str, f64> = BTreeMap::new();
    for (i, shape) in shapes.iter().enumerate() {
        *totals.entry(shape.name()).or_insert(0.0) += shape.area();
        println!("{} {}", pick(i), Color::Violet);
    }
    for argument in std::env::args().skip(1) {
        println!("{:?} {:?}", parse(&argument), totals.get(argument.as_str()).copied().unwrap_or_default());
    }
    assert!(shapes.len() < 7, "too many shapes");
}
