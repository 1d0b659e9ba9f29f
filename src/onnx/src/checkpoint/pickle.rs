//! A pickle machine that knows tensors and nothing else.
//!
//! Python's pickles are programs: `REDUCE` calls whatever callable they name.
//! This machine calls nothing. It knows by name the few things that a saved
//! dictionary of tensors is made of, builds plain data for them, and refuses
//! every other name the moment it is read, before anything is applied to it.
//! Opcodes are those of Python's `pickletools` that such a dictionary needs,
//! protocols 2 to 5.
//!
//! Values live in one arena and refer to each other by number, so that no
//! nesting, cycle or repetition in a pickle costs more than its own length.

use std::collections::HashMap;
use std::path::Path;

use super::tensor::Dtype;
use crate::{Error, Result};

/// Values that a pickle may make, and store for later. A model of 1,000 tensors makes 20,000.
const MAX_VALUES: usize = 1 << 20;
/// Tensors of a file. The largest models have a few thousand.
const MAX_TENSORS: usize = 1 << 17;
/// Axes of a tensor; PyTorch allows 64 and models use four.
const MAX_AXES: usize = 8;

/// Elements of the file that a tensor views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored<'a> {
    /// Name of the file within the archive.
    pub(super) key: &'a str,
    /// Element type.
    pub(super) dtype: Dtype,
    /// Elements in the file.
    pub(super) elements: usize,
    /// Element at which the tensor begins.
    pub(super) first: usize,
    /// Sizes of the axes.
    pub(super) shape: Vec<usize>,
    /// Elements from one index to the next, for each axis.
    pub(super) strides: Vec<usize>,
}

/// Number of a value in the arena.
type Id = usize;

#[derive(Clone, Debug)]
enum Value<'a> {
    /// Of no use to a tensor: `None`, floats, bytes.
    Opaque,
    Bool,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Callable(Callable),
    StorageType(Dtype),
    Storage {
        key: &'a str,
        dtype: Dtype,
        elements: usize,
    },
    Tensor(Box<Stored<'a>>),
}

/// What `REDUCE` may be asked for.
#[derive(Clone, Copy, Debug)]
enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
}

/// Named tensors of the dictionary that a pickle holds, in its order. Entries
/// of other kinds (counters, settings) are left out.
pub(super) fn tensors<'a>(path: &Path, pickle: &'a [u8]) -> Result<Vec<(&'a str, Stored<'a>)>> {
    let mut machine = Machine {
        path,
        input: pickle,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let top = machine.run()?;
    let Some(Value::Dict(entries)) = machine.values.get(top) else {
        return Err(machine.bad("holds something other than a dictionary of tensors"));
    };
    if entries.len() > MAX_TENSORS {
        return Err(machine.bad("holds more tensors than any model has"));
    }
    let named = entries.iter().filter_map(|(key, value)| {
        match (machine.values.get(*key)?, machine.values.get(*value)?) {
            (Value::Text(name), Value::Tensor(tensor)) => Some((*name, (**tensor).clone())),
            _ => None,
        }
    });
    Ok(named.collect())
}

struct Machine<'p, 'a> {
    path: &'p Path,
    input: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'_, 'a> {
    fn bad(&self, reason: &str) -> Error {
        Error::malformed(self.path, format!("pickle, byte {}: {reason}", self.at))
    }

    /// Runs to `STOP` and returns what is on top.
    fn run(&mut self) -> Result<Id> {
        loop {
            let [opcode] = *self.take(1)? else {
                return Err(self.bad("ends too early"));
            };
            match opcode {
                b'.' => return self.pop(),
                0x80 => {
                    let protocol = self.byte()?;
                    if protocol > 5 {
                        return Err(self.bad("has a protocol above 5"));
                    }
                }
                // FRAME: a hint about lengths that changes nothing.
                0x95 => drop(self.take(8)?),
                _ => self.step(opcode)?,
            }
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // Marks, memo.
            b'(' => self.mark()?,
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'q' => {
                let key = self.byte()?;
                self.remember(usize::from(key))?;
            }
            b'r' => {
                let key = self.length(4)?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'h' => {
                let key = self.byte()?;
                self.recall(usize::from(key))?;
            }
            b'j' => {
                let key = self.length(4)?;
                self.recall(key)?;
            }
            // Plain values.
            b'N' => self.push(Value::Opaque)?,
            0x88 | 0x89 => self.push(Value::Bool)?,
            b'K' => {
                let n = self.byte()?;
                self.push(Value::Int(i64::from(n)))?;
            }
            b'M' => {
                let n = self.length(2)?;
                self.push(Value::Int(i64::try_from(n).unwrap_or(i64::MAX)))?;
            }
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(i64::from(n)))?;
            }
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Opaque)?;
            }
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b'C' => self.opaque(1)?,
            b'B' => self.opaque(4)?,
            0x8e => self.opaque(8)?,
            // Containers.
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push(Value::Tuple(items))?;
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set(&items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(&items)?;
            }
            // Names and what is made of them.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let names = self.pop_many(2)?;
                let [module, name] = self.texts(&names)?;
                self.global(module, name)?;
            }
            // INST names a class and calls it at once.
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return Err(self.forbidden(module, name));
            }
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            _ => {
                let reason = format!("opcode {opcode:#04x} has no place among tensors");
                return Err(self.bad(&reason));
            }
        }
        Ok(())
    }

    // === Input ===

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        match rest.get(..count) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => Err(self.bad("ends too early")),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.take(N)?.first_chunk() {
            Some(bytes) => Ok(*bytes),
            None => Err(self.bad("ends too early")),
        }
    }

    /// A length of up to 8 bytes.
    fn length(&mut self, bytes: usize) -> Result<usize> {
        let taken = self.take(bytes)?;
        let mut wide = [0; 8];
        for (to, from) in wide.iter_mut().zip(taken) {
            *to = *from;
        }
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| self.bad("length is too large"))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err(self.bad("ends within a name"));
        };
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).map_err(|_| self.bad("a name is not UTF-8"))
    }

    fn text(&mut self, length: usize) -> Result<()> {
        let length = self.length(length)?;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.bad("a text is not UTF-8"))?;
        self.push(Value::Text(text))
    }

    fn opaque(&mut self, length: usize) -> Result<()> {
        let length = self.length(length)?;
        self.take(length)?;
        self.push(Value::Opaque)
    }

    /// LONG1: little-endian two's complement of any length.
    fn long(&mut self) -> Result<()> {
        let length = self.byte()?;
        let bytes = self.take(usize::from(length))?;
        if bytes.len() > 8 {
            return Err(self.bad("a number is too large"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    // === Stack and memo ===

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        if self.values.len() == MAX_VALUES {
            return Err(self.bad("makes more values than any model needs"));
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    /// Lowest place that may be popped: what lies under a mark is out of reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or_default()
    }

    fn pop(&mut self) -> Result<Id> {
        if self.stack.len() <= self.floor() {
            return Err(self.bad("takes from an empty stack"));
        }
        self.stack
            .pop()
            .ok_or_else(|| self.bad("takes from an empty stack"))
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        match self.stack.len().checked_sub(count) {
            Some(from) if from >= self.floor() => Ok(self.stack.split_off(from)),
            _ => Err(self.bad("takes from an empty stack")),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => Err(self.bad("takes to a mark that was not set")),
        }
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => Err(self.bad("looks at an empty stack")),
        }
    }

    fn mark(&mut self) -> Result<()> {
        if self.marks.len() == MAX_VALUES {
            return Err(self.bad("nests deeper than any model needs"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn remember(&mut self, key: usize) -> Result<()> {
        let id = self.top()?;
        if self.memo.len() == MAX_VALUES {
            return Err(self.bad("stores more values than any model needs"));
        }
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Result<()> {
        match self.memo.get(&key) {
            Some(id) => self.stack.push(*id),
            None => return Err(self.bad("recalls what it has not stored")),
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.top()?;
        match self.values.get_mut(list) {
            Some(Value::List(list)) => list.extend(items),
            _ => return Err(self.bad("appends to something other than a list")),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<()> {
        let (pairs, odd) = items.as_chunks::<2>();
        let dict = self.top()?;
        match self.values.get_mut(dict) {
            Some(Value::Dict(dict)) if odd.is_empty() => {
                dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
            }
            _ => return Err(self.bad("sets items of something other than a dictionary")),
        }
        Ok(())
    }

    // === Tensors ===

    fn forbidden(&self, module: &str, name: &str) -> Error {
        Error::ForbiddenGlobal {
            path: self.path.to_owned(),
            global: format!("{module}.{name}"),
        }
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<()> {
        let value = match (module, name) {
            ("collections", "OrderedDict") => Value::Callable(Callable::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Value::Callable(Callable::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Value::Callable(Callable::RebuildParameter),
            ("torch", _) => match storage_type(name) {
                Some(dtype) => Value::StorageType(dtype),
                None => return Err(self.forbidden(module, name)),
            },
            _ => return Err(self.forbidden(module, name)),
        };
        self.push(value)
    }

    /// BINPERSID: `("storage", type, key, device, elements)`.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let parts = self.tuple(id)?;
        let [kind, dtype, key, _device, elements] = parts[..] else {
            return Err(self.bad("a storage is described by five values"));
        };
        let (Value::Text("storage"), Value::StorageType(dtype), Value::Text(key)) =
            (self.value(kind)?, self.value(dtype)?, self.value(key)?)
        else {
            return Err(self.bad("a persistent value is not a storage"));
        };
        let (dtype, key) = (*dtype, *key);
        let elements = self.size(elements)?;
        self.push(Value::Storage {
            key,
            dtype,
            elements,
        })
    }

    fn reduce(&mut self) -> Result<()> {
        let [callable, arguments] = self.pop_many(2)?[..] else {
            return Err(self.bad("takes from an empty stack"));
        };
        let Value::Callable(callable) = *self.value(callable)? else {
            return Err(self.bad("calls something that cannot be called"));
        };
        // A call looks at the first four values of the ones that it is given.
        let arguments = self.tuple(arguments)?;
        let arguments: Vec<Id> = arguments.iter().take(4).copied().collect();
        match (callable, arguments.as_slice()) {
            (Callable::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Callable::RebuildTensor, [storage, first, shape, strides]) => {
                let Value::Storage {
                    key,
                    dtype,
                    elements,
                } = *self.value(*storage)?
                else {
                    return Err(self.bad("a tensor is not made of a storage"));
                };
                let tensor = Stored {
                    key,
                    dtype,
                    elements,
                    first: self.size(*first)?,
                    shape: self.sizes(*shape)?,
                    strides: self.sizes(*strides)?,
                };
                self.push(Value::Tensor(Box::new(tensor)))
            }
            (Callable::RebuildParameter, [tensor, ..]) => {
                if !matches!(self.value(*tensor)?, Value::Tensor(_)) {
                    return Err(self.bad("a parameter is not made of a tensor"));
                }
                self.stack.push(*tensor);
                Ok(())
            }
            _ => Err(self.bad("calls with the wrong number of values")),
        }
    }

    /// BUILD: attributes of a dictionary (`_metadata` of modules), which say nothing of tensors.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        let id = self.top()?;
        match self.value(id)? {
            Value::Dict(_) => Ok(()),
            _ => Err(self.bad("sets attributes of something other than a dictionary")),
        }
    }

    fn value(&self, id: Id) -> Result<&Value<'a>> {
        self.values
            .get(id)
            .ok_or_else(|| self.bad("names a value that is not there"))
    }

    fn tuple(&self, id: Id) -> Result<&[Id]> {
        match self.value(id)? {
            Value::Tuple(items) => Ok(items),
            _ => Err(self.bad("a tuple was expected")),
        }
    }

    fn size(&self, id: Id) -> Result<usize> {
        match self.value(id)? {
            Value::Int(n) => usize::try_from(*n).map_err(|_| self.bad("a size is negative")),
            _ => Err(self.bad("a size was expected")),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        let ids = self.tuple(id)?;
        if ids.len() > MAX_AXES {
            return Err(self.bad("a tensor has too many axes"));
        }
        ids.iter().map(|id| self.size(*id)).collect()
    }

    fn texts(&self, ids: &[Id]) -> Result<[&'a str; 2]> {
        let [first, second] = *ids else {
            return Err(self.bad("takes from an empty stack"));
        };
        match (self.value(first)?, self.value(second)?) {
            (Value::Text(first), Value::Text(second)) => Ok([first, second]),
            _ => Err(self.bad("a name is not a text")),
        }
    }
}

/// Element type that a class of storages has.
fn storage_type(class: &str) -> Option<Dtype> {
    let other = |name, bits| Some(Dtype::Other { name, bits });
    match class {
        "FloatStorage" => Some(Dtype::F32),
        "HalfStorage" => Some(Dtype::F16),
        "BFloat16Storage" => Some(Dtype::Bf16),
        "DoubleStorage" => other("F64", 64),
        "LongStorage" => other("I64", 64),
        "IntStorage" => other("I32", 32),
        "ShortStorage" => other("I16", 16),
        "CharStorage" => other("I8", 8),
        "ByteStorage" => other("U8", 8),
        "BoolStorage" => other("BOOL", 8),
        _ => None,
    }
}
