# gnuplot over-time.gp
set encoding utf8
set title 'Tokens per second over time, last round' noenhanced
set xlabel 'seconds since the round''s start' noenhanced
set ylabel 'tokens/s' noenhanced
set key below noenhanced
set grid
set style fill solid 0.8 border -1
set datafile missing 'NaN'
set yrange [0:*]
set terminal svg noenhanced size 800,480
set output 'over-time.svg'
plot 'over-time.dat' index 0 using 1:2 with lines lw 2 title 'batch 64', \
     'over-time.dat' index 1 using 1:2 with lines lw 2 title 'batch 32', \
     'over-time.dat' index 2 using 1:2 with lines lw 2 title 'batch 16'
set terminal pngcairo noenhanced size 800,480
set output 'over-time.png'
plot 'over-time.dat' index 0 using 1:2 with lines lw 2 title 'batch 64', \
     'over-time.dat' index 1 using 1:2 with lines lw 2 title 'batch 32', \
     'over-time.dat' index 2 using 1:2 with lines lw 2 title 'batch 16'
unset output
