// Checks documents of custom kinds: against TypeScript's types (an unknown field is an error there), and against the
// packages' own validators (patterns, required fields). node check-crds.mjs TOOLS FILE…; exit code 1: something is wrong.
import { readFileSync, writeFileSync, mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [tools, ...files] = process.argv.slice(2);
const require = createRequire(join(tools, "crds", "package.json"));
const yaml = require("js-yaml");
const packages = { "keda.sh": "keda", "monitoring.coreos.com": "prometheus-operator" };

const dir = mkdtempSync(join(tools, "crds", "check-"));
let failed = false;
let count = 0;
let program = "";
try {
  for (const file of files) {
    for (const doc of yaml.loadAll(readFileSync(file, "utf8"))) {
      const [group, version] = (doc?.apiVersion ?? "").split("/");
      if (!packages[group]) continue;
      const module = `@kubernetes-models/${packages[group]}/${group}/${version}/${doc.kind}`;
      const path = join(tools, "crds", "node_modules", `${module}.js`);
      const { [doc.kind]: Kind } = await import(pathToFileURL(path).href);
      try {
        new Kind(structuredClone(doc)).validate();
      } catch (error) {
        console.error(`${file}: ${doc.kind} ${doc.metadata?.name}: ${error.message}`);
        failed = true;
      }
      // A literal, so that TypeScript looks for fields that the type does not have.
      program += `import type { I${doc.kind} as T${count} } from "${module}"; // ${file}\n`;
      program += `export const d${count}: T${count} = ${JSON.stringify(doc, null, 2)};\n`;
      count++;
    }
  }
  writeFileSync(join(dir, "documents.ts"), program);
  const tsc = join(tools, "crds", "node_modules", "typescript", "bin", "tsc");
  const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"];
  execFileSync(process.execPath, [tsc, ...options, join(dir, "documents.ts")], { stdio: "inherit" });
} catch (error) {
  if (error.status === undefined) console.error(error.message);
  failed = true;
} finally {
  rmSync(dir, { recursive: true });
}
if (!failed) console.log(`${count} documents of custom kinds are well`);
process.exit(failed ? 1 : 0);
