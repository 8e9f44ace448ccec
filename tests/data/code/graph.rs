#![allow(dead_code)]
//! Größe 🙂.
use std::collections::{self, HashMap, hash_map::{Entry as E, *}};
use std::fmt;
use serde as s;
mod search;

/// A graph — „Größe“.
/// With edges.
#[derive(Debug, Clone)]
#[serde(rename = "g")]
pub struct Graph<T> {
    nodes: Vec<T>,
    edges: HashMap<String, usize>,
}

pub struct Point(i32, i32);

pub enum Kind { Directed, Undirected(u8) }

/** Walks. */
pub trait Walk {
    /// Required.
    fn walk(&self, from: usize) -> usize;
    fn twice(&self, from: usize) -> usize { self.walk(self.walk(from)) }
}

impl<T: Clone> Graph<T> {
    /// Adds one.
    #[inline]
    pub async fn add_edge<'a>(&'a mut self, from: &str) -> Result<(), fmt::Error>
    where
        T: fmt::Debug,
    {
        // first
        let key = format!("{from}→日本");
        if let Some(n) = self.edges.get_mut(&key) {
            *n += 1;
        } else {
            self.edges.insert(key, 1);
        }
        fn helper(x: i32) -> i32 { x + 1 }
        let f = |x| helper(x);
        match f(1) {
            1 => first(),
            _ => { last(); }
        }
        Ok(())
    }
}

impl<T> Walk for crate::inner::Graph<T> {
    fn walk(&self, from: usize) -> usize { from }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result { write!(f, "{}", self.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_works() {
        assert_eq!(Point(1, 2).0, 1);
    }
}
