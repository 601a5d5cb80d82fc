//! The arrows of ARCHITECTURE.md: between crates they are those that Cargo has, and neither between crates nor between the
//! top-level modules of one do they turn back.
//!
//! Of a module count the paths that begin at the root of its crate, outside of tests. A name that the root re-exports is not
//! followed into the module that it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each node needs, and the file that says so.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

/// One module of a crate.
struct Source {
    file: PathBuf,
    /// The names from the root down to it; the root has none.
    path: Vec<String>,
    /// Without comments and tests.
    code: String,
}

#[test]
fn arrows_between_crates_are_those_of_the_map() {
    let (drawn, built) = (drawn(&architecture()), crates());
    for name in drawn.keys() {
        assert!(built.contains_key(name), "ARCHITECTURE.md draws arrows from `{name}`, which is no crate");
    }
    for (name, needs) in &built {
        let needs: BTreeSet<String> = needs.keys().cloned().collect();
        let of_map = drawn.get(name).cloned().unwrap_or_default();
        if !of_map.contains("everything") {
            assert_eq!(needs, of_map, "`{name}`: left its Cargo.toml, right the arrows of ARCHITECTURE.md");
        }
    }
    check_acyclic("crates", &built);
}

#[test]
fn every_crate_is_a_room_of_the_map() {
    let built: Vec<String> = crates().into_keys().collect();
    assert_eq!(
        built,
        rooms(&architecture()),
        "left the folders in crates/, right the table of ARCHITECTURE.md"
    );
}

#[test]
fn modules_of_a_crate_do_not_need_each_other() {
    for name in crates().keys() {
        let graph = modules(&top().join("crates").join(name).join("src"));
        check_acyclic(&format!("top-level modules of `{name}`"), &graph);
    }
}

#[track_caller]
fn check_acyclic(what: &str, graph: &Graph) {
    if let Some(nodes) = cycle(graph) {
        let next = nodes.iter().cycle().skip(1);
        let arrows = nodes.iter().zip(next).map(|(a, b)| format!("\n  {a} -> {b} in {}", graph[*a][*b]));
        panic!("{what} need each other:{}", arrows.collect::<String>());
    }
}

/// The nodes of one cycle, in order.
fn cycle(graph: &Graph) -> Option<Vec<&str>> {
    let mut seen = BTreeSet::new();
    graph.keys().find_map(|node| cycle_from(graph, node, &mut Vec::new(), &mut seen))
}

fn cycle_from<'a>(
    graph: &'a Graph,
    node: &'a str,
    way: &mut Vec<&'a str>,
    seen: &mut BTreeSet<&'a str>,
) -> Option<Vec<&'a str>> {
    if let Some(start) = way.iter().position(|passed| *passed == node) {
        return Some(way[start..].to_vec());
    }
    if !seen.insert(node) {
        return None;
    }
    way.push(node);
    let mut needs = graph.get(node).into_iter().flat_map(BTreeMap::keys);
    let found = needs.find_map(|next| cycle_from(graph, next, way, seen));
    way.pop();
    found
}

/// The repository.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn architecture() -> String {
    fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap()
}

/// The arrows in the paragraph of the map that lists them: `a → b, c`.
fn drawn(architecture: &str) -> BTreeMap<String, BTreeSet<String>> {
    let (_, after) = architecture.split_once("\nArrows: ").expect("a paragraph of arrows");
    let paragraph = after.split("\n\n").next().unwrap_or_default();
    let arrows = paragraph.split('`').skip(1).step_by(2).filter_map(|code| code.split_once('→'));
    let names = |list: &str| list.split(',').map(|name| name.trim().to_owned()).collect();
    arrows.map(|(from, to)| (from.trim().to_owned(), names(to))).collect()
}

/// The first column of the table of rooms, sorted.
fn rooms(architecture: &str) -> Vec<String> {
    let (_, after) = architecture.split_once("\n## Rooms\n").expect("a section of rooms");
    let section = after.split("\n## ").next().unwrap_or_default();
    let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

/// Which crate depends on which, by their manifests. What only tests or build scripts need does not count.
fn crates() -> Graph {
    let folders = fs::read_dir(top().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let folders: Vec<PathBuf> = folders.filter(|folder| folder.join("Cargo.toml").exists()).collect();
    let name = |folder: &Path| folder.file_name().unwrap().to_str().unwrap().to_owned();
    let names: BTreeSet<String> = folders.iter().map(|folder| name(folder)).collect();
    let needs = |folder: &Path| {
        let file = folder.join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
        let needed =
            dependencies.into_iter().flat_map(toml::Table::keys).filter(|name| names.contains(*name));
        needed.map(|name| (name.clone(), shown(&file))).collect()
    };
    folders.iter().map(|folder| (name(folder), needs(folder))).collect()
}

/// A file as messages name it.
fn shown(file: &Path) -> String {
    file.strip_prefix(top()).unwrap_or(file).display().to_string()
}

/// Which top-level module of a crate needs which other one.
fn modules(folder: &Path) -> Graph {
    let mut sources = Vec::new();
    let roots = ["lib.rs", "main.rs"].map(|root| folder.join(root));
    for root in roots.iter().filter(|root| root.exists()) {
        read_module(root, folder, Vec::new(), &mut sources);
    }
    let mut graph: Graph =
        sources.iter().filter_map(|source| Some((source.path.first()?.clone(), BTreeMap::new()))).collect();
    let names: BTreeSet<String> = graph.keys().cloned().collect();
    for Source { file, path, code } in &sources {
        let Some((module, needs)) = path.first().and_then(|module| Some((module, graph.get_mut(module)?)))
        else {
            continue;
        };
        for name in used(code, path.len()) {
            if name != module && names.contains(name) {
                needs.entry(name.to_owned()).or_insert_with(|| shown(file));
            }
        }
    }
    graph
}

/// Reads the module in `file` and those that it declares, whose files are in `folder`.
fn read_module(file: &Path, folder: &Path, path: Vec<String>, sources: &mut Vec<Source>) {
    let code = code(&fs::read_to_string(file).unwrap());
    for name in declared(&code) {
        let below = folder.join(name);
        let files = [below.with_extension("rs"), below.join("mod.rs")];
        let found = files.iter().find(|file| file.exists());
        let found = found.unwrap_or_else(|| panic!("{} declares `{name}`, which has no file", shown(file)));
        read_module(found, &below, [&path[..], &[name.to_owned()]].concat(), sources);
    }
    sources.push(Source { file: file.to_owned(), path, code });
}

/// A source text without comments and without what is compiled for tests only.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().map(|line| line.split("//").next().unwrap_or_default().trim_end());
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        if ["#[cfg(test)]", "#[cfg(any(test,"].iter().any(|start| trimmed.starts_with(start)) {
            // An item ends at the indentation at which it begins: the sources are formatted.
            let ends = |end: &str| indentation(end) == indentation(line) && end.ends_with([';', ',', '}']);
            lines.find(|line| ends(line));
        } else {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The modules that a source declares and does not hold itself.
fn declared(code: &str) -> Vec<&str> {
    let declarations = code.lines().filter_map(|line| line.trim().strip_suffix(';')?.split_once("mod "));
    let named = declarations.filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
    named.map(|(_, name)| name).collect()
}

/// The first names of all paths that begin at the root of the crate, in a module that is `depth` below it.
fn used(code: &str, depth: usize) -> Vec<&str> {
    let roots = ["crate::".to_owned(), "super::".repeat(depth)];
    let found = roots.iter().flat_map(|root| {
        let ends = code.match_indices(root.as_str()).filter(|(start, _)| begins_path(&code[..*start]));
        ends.flat_map(|(start, _)| first_names(&code[start + root.len()..]))
    });
    found.collect()
}

/// Whether a path begins after this text, and not in the middle of a name or of another path.
fn begins_path(before: &str) -> bool {
    !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
}

/// The first name of a path, or of each path of a group: `a`, `b` of `{a, b::{c, d}}`.
fn first_names(paths: &str) -> Vec<&str> {
    let Some(group) = paths.strip_prefix('{') else { return vec![identifier(paths)] };
    let (mut names, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' if depth == 0 => {
                names.push(identifier(&group[start..at]));
                start = at + 1;
            }
            '}' => {
                names.push(identifier(&group[start..at]));
                break;
            }
            _ => {}
        }
    }
    // Behind the last comma there is none.
    names.retain(|name| !name.is_empty());
    names
}

fn identifier(path: &str) -> &str {
    path.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

#[test]
fn a_cycle_is_found_where_there_is_one() {
    let graph = |arrows: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (a, b) in arrows {
            graph.entry((*a).to_owned()).or_default().insert((*b).to_owned(), format!("{a}.rs"));
        }
        graph
    };
    assert_eq!(cycle(&graph(&[("a", "b"), ("a", "c"), ("b", "c"), ("c", "d")])), None);
    let turned = graph(&[("a", "b"), ("b", "c"), ("b", "d"), ("d", "e"), ("e", "b")]);
    assert_eq!(cycle(&turned), Some(vec!["b", "d", "e"]));
    let message = std::panic::catch_unwind(|| check_acyclic("these", &turned)).unwrap_err();
    let message = message.downcast::<String>().unwrap();
    assert_eq!(*message, "these need each other:\n  b -> d in b.rs\n  d -> e in d.rs\n  e -> b in e.rs");
}

#[test]
fn what_a_module_uses_is_understood() {
    #[track_caller]
    fn check(depth: usize, code: &str, expected: &[&str]) {
        assert_eq!(used(code, depth), expected, "{code}");
    }
    check(1, "use crate::{\n    a,\n    b::{c, d},\n};\nuse crate::e::{f, g};\n", &["a", "b", "e"]);
    check(1, "use crate::{a::{self, b::{c}}, d};", &["a", "d"]);
    check(1, "pub(crate) fn f(x: crate::a::X) -> Y { $crate::b::g() }", &["a", "b"]);
    check(1, "use super::a::{b, c};", &["a"]);
    check(1, "use that_crate::a; use other::super::a;", &[]);
    check(2, "use super::a; use super::super::b::c;", &["b"]);
}

#[test]
fn tests_and_comments_are_no_code() {
    let text = "//! `crate::a`\n#[cfg(test)]\nmod tests;\nmod b;\npub mod c;\n#[cfg(any(test, feature = \"x\"))]\n\
                pub(crate) mod d;\nfn f() {\n    #[cfg(test)]\n    if g(\n        1,\n    ) {\n        h()\n    }\n    i()\n}\n\
                #[cfg(test)]\n/// One,\n#[expect(unused)]\nmod more {\n    use crate::e;\n    fn j() {}\n}\nuse crate::k;\n";
    let left = code(text);
    assert_eq!(left, "\nmod b;\npub mod c;\nfn f() {\n    i()\n}\nuse crate::k;\n");
    assert_eq!(declared(&left), ["b", "c"]);
}

#[test]
fn the_map_is_read() {
    let map = "# A\n\n## Rooms\n\n| room | for |\n|---|---|\n| `b` | |\n| `a` | `c` |\n\nArrows: `a → everything`;\n\
               `b → c, d`.\n`e` has none.\n\n`f → g`\n\n## More\n\n| `h` |\n";
    assert_eq!(rooms(map), ["a", "b"]);
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let arrows = [("a".to_owned(), set(&["everything"])), ("b".to_owned(), set(&["c", "d"]))];
    assert_eq!(drawn(map), BTreeMap::from(arrows));
}
