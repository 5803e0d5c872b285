//! An assembler of the few x86 instructions that the payloads need. Each
//! method is one instruction and names its encoding (Intel SDM, volume 2).
//!
//! Unless a method says otherwise its encoding means the same in 32-bit
//! protected mode and in 64-bit mode.

/// A place in [`Code`] that a jump can go back to.
#[derive(Clone, Copy)]
pub(super) struct Label(usize);

/// Machine code under construction.
#[derive(Default)]
pub(super) struct Code(Vec<u8>);

impl Code {
    /// The code so far.
    pub(super) fn bytes(self) -> Vec<u8> {
        self.0
    }

    /// Length so far in bytes.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The place of the next instruction.
    pub(super) fn here(&self) -> Label {
        Label(self.0.len())
    }

    fn emit(&mut self, opcode: &[u8], immediate: &[u8]) {
        self.0.extend_from_slice(opcode);
        self.0.extend_from_slice(immediate);
    }

    /// `mov al, imm8` (B0 ib).
    pub(super) fn mov_al(&mut self, value: u8) {
        self.emit(&[0xb0, value], &[]);
    }

    /// `mov dx, imm16` (66 BA iw).
    pub(super) fn mov_dx(&mut self, value: u16) {
        self.emit(&[0x66, 0xba], &value.to_le_bytes());
    }

    /// `mov eax, imm32` (B8 id).
    pub(super) fn mov_eax(&mut self, value: u32) {
        self.emit(&[0xb8], &value.to_le_bytes());
    }

    /// `mov ecx, imm32` (B9 id).
    pub(super) fn mov_ecx(&mut self, value: u32) {
        self.emit(&[0xb9], &value.to_le_bytes());
    }

    /// `inc dword [moffs32]` (FF /0, ModRM 05: a bare 32-bit address; 64-bit
    /// mode would take it as relative to RIP).
    pub(super) fn inc_dword_at(&mut self, address: u32) {
        self.emit(&[0xff, 0x05], &address.to_le_bytes());
    }

    /// `lock inc word [disp16]` (F0 FF /0, ModRM 06), real mode only.
    pub(super) fn lock_inc_word_at(&mut self, address: u16) {
        self.emit(&[0xf0, 0xff, 0x06], &address.to_le_bytes());
    }

    /// `mov dword [disp32], imm32` (C7 /0 id), 32-bit mode only.
    pub(super) fn store_dword_at(&mut self, address: u32, value: u32) {
        self.emit(&[0xc7, 0x05], &address.to_le_bytes());
        self.emit(&value.to_le_bytes(), &[]);
    }

    /// `cmp dword [disp32], imm32` (81 /7 id), 32-bit mode only.
    pub(super) fn compare_dword_at(&mut self, address: u32, value: u32) {
        self.emit(&[0x81, 0x3d], &address.to_le_bytes());
        self.emit(&value.to_le_bytes(), &[]);
    }

    /// `ud2` (0F 0B).
    pub(super) fn ud2(&mut self) {
        self.emit(&[0x0f, 0x0b], &[]);
    }

    /// `out dx, al` (EE).
    pub(super) fn out_dx_al(&mut self) {
        self.emit(&[0xee], &[]);
    }

    /// `out imm8, al` (E6 ib).
    pub(super) fn out_al(&mut self, port: u8) {
        self.emit(&[0xe6, port], &[]);
    }

    /// `hlt` (F4).
    pub(super) fn hlt(&mut self) {
        self.emit(&[0xf4], &[]);
    }

    /// `jmp rel8` (EB cb), back to a label at most 126 bytes away.
    pub(super) fn jmp(&mut self, to: Label) {
        self.short_jump(0xeb, to);
    }

    /// `loopne rel8` (E0 cb): counts `ecx` down and goes back, unless it is 0
    /// or the last comparison found its operands equal. Flags stay as they
    /// are.
    pub(super) fn loop_while_unequal(&mut self, to: Label) {
        self.short_jump(0xe0, to);
    }

    fn short_jump(&mut self, opcode: u8, to: Label) {
        let back = self.0.len() + 2 - to.0;
        debug_assert!(back <= 128, "a short jump reaches 128 bytes back");
        // Two's complement of the distance, counted from the next instruction.
        self.emit(&[opcode, (back as u8).wrapping_neg()], &[]);
    }

    /// `lgdt [disp32]` (0F 01 /2), 32-bit mode only.
    pub(super) fn lgdt(&mut self, address: u32) {
        self.emit(&[0x0f, 0x01, 0x15], &address.to_le_bytes());
    }

    /// `mov cr3, eax` (0F 22 /r).
    pub(super) fn mov_cr3_eax(&mut self) {
        self.emit(&[0x0f, 0x22, 0xd8], &[]);
    }

    /// `mov cr4, eax` (0F 22 /r).
    pub(super) fn mov_cr4_eax(&mut self) {
        self.emit(&[0x0f, 0x22, 0xe0], &[]);
    }

    /// `mov cr0, eax` (0F 22 /r).
    pub(super) fn mov_cr0_eax(&mut self) {
        self.emit(&[0x0f, 0x22, 0xc0], &[]);
    }

    /// `xor edx, edx` (31 /r).
    pub(super) fn clear_edx(&mut self) {
        self.emit(&[0x31, 0xd2], &[]);
    }

    /// `wrmsr` (0F 30): MSR `ecx` becomes `edx:eax`.
    pub(super) fn wrmsr(&mut self) {
        self.emit(&[0x0f, 0x30], &[]);
    }

    /// Bytes of [`Code::far_jmp`].
    pub(super) const FAR_JMP_LEN: u32 = 7;

    /// `jmp ptr16:32` (EA cp), 32-bit mode only.
    pub(super) fn far_jmp(&mut self, selector: u16, address: u32) {
        self.emit(&[0xea], &address.to_le_bytes());
        self.emit(&selector.to_le_bytes(), &[]);
    }

    /// `mov ds, eax` (8E /r).
    pub(super) fn mov_ds_eax(&mut self) {
        self.emit(&[0x8e, 0xd8], &[]);
    }

    /// `mov rbx, imm64` (REX.W BB io), 64-bit mode only.
    pub(super) fn mov_rbx(&mut self, value: u64) {
        self.emit(&[0x48, 0xbb], &value.to_le_bytes());
    }

    /// `mov rsi, imm64` (REX.W BE io), 64-bit mode only.
    pub(super) fn mov_rsi(&mut self, value: u64) {
        self.emit(&[0x48, 0xbe], &value.to_le_bytes());
    }

    /// `mov [rbx], rsi` (REX.W 89 /r), 64-bit mode only.
    pub(super) fn store_rsi_at_rbx(&mut self) {
        self.emit(&[0x48, 0x89, 0x33], &[]);
    }

    /// `cmp [rbx], rsi` (REX.W 39 /r), 64-bit mode only.
    pub(super) fn compare_rsi_at_rbx(&mut self) {
        self.emit(&[0x48, 0x39, 0x33], &[]);
    }

    /// `je rel8` (74 cb) over the one instruction `mov al, imm8` that follows
    /// it: `al` becomes `value` only after an unequal comparison.
    pub(super) fn mov_al_if_unequal(&mut self, value: u8) {
        self.emit(&[0x74, 0x02], &[]);
        self.mov_al(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_jump_counts_from_the_next_instruction() {
        let mut code = Code::default();
        let start = code.here();
        code.hlt();
        code.jmp(start);
        assert_eq!(code.bytes(), [0xf4, 0xeb, 0xfd]);
    }

    #[test]
    fn immediates_are_little_endian() {
        let mut code = Code::default();
        code.mov_rbx(0x0102_0304_0506_0708);
        code.far_jmp(0x10, 0x1122_3344);
        assert_eq!(
            code.bytes(),
            [0x48, 0xbb, 8, 7, 6, 5, 4, 3, 2, 1, 0xea, 0x44, 0x33, 0x22, 0x11, 0x10, 0]
        );
    }
}
