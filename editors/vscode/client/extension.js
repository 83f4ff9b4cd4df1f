"use strict";

// Starts `gradwarden lsp` and connects the editor with it. Everything else is done by the server.

const path = require("node:path");
const vscode = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

function serverCommand() {
  const [command, ...args] = vscode.workspace.getConfiguration("gradwarden").get("command");
  const folder = vscode.workspace.workspaceFolders?.[0]?.uri.fsPath;
  const isRelativePath = command.includes("/") && !path.isAbsolute(command);
  return {
    command: isRelativePath && folder ? path.join(folder, command) : command,
    args,
    options: folder ? { cwd: folder } : undefined,
  };
}

async function start() {
  client = new LanguageClient("gradwarden", "gradwarden", serverCommand(), {
    documentSelector: [{ language: "gradwarden-policy" }],
    synchronize: { fileEvents: vscode.workspace.createFileSystemWatcher("**/*.policy") },
  });
  try {
    await client.start();
  } catch (error) {
    const hint = "Is it installed? `pip install 'gradwarden[lsp]'`, or set `gradwarden.command`.";
    vscode.window.showErrorMessage(`The gradwarden language server did not start. ${hint} (${error})`);
  }
}

async function stop() {
  const running = client;
  client = undefined;
  await running?.stop().catch(() => undefined); // one that never started cannot be stopped
}

async function activate(context) {
  context.subscriptions.push(
    vscode.commands.registerCommand("gradwarden.restart", async () => {
      await stop();
      await start();
    }),
    vscode.workspace.onDidChangeConfiguration(async (event) => {
      if (event.affectsConfiguration("gradwarden.command")) {
        await stop();
        await start();
      }
    }),
  );
  await start();
}

module.exports = { activate, deactivate: stop };
