# gnuplot percentiles.gp
set encoding utf8
set title 'Latency percentiles' noenhanced
set xlabel 'percentile' noenhanced
set ylabel 'seconds' noenhanced
set key below noenhanced
set grid
set style fill solid 0.8 border -1
set datafile missing 'NaN'
set logscale y 10
set terminal svg noenhanced size 800,480
set output 'percentiles.svg'
plot 'percentiles.dat' index 0 using 1:2 with lines lw 2 title 'batch 1', \
     'percentiles.dat' index 1 using 1:2 with lines lw 2 title 'batch 4', \
     'percentiles.dat' index 2 using 1:2 with lines lw 2 title 'batch 8', \
     'percentiles.dat' index 3 using 1:2 with lines lw 2 title 'batch 16', \
     'percentiles.dat' index 4 using 1:2 with lines lw 2 title 'batch 32', \
     'percentiles.dat' index 5 using 1:2 with lines lw 2 title 'batch 64'
set terminal pngcairo noenhanced size 800,480
set output 'percentiles.png'
plot 'percentiles.dat' index 0 using 1:2 with lines lw 2 title 'batch 1', \
     'percentiles.dat' index 1 using 1:2 with lines lw 2 title 'batch 4', \
     'percentiles.dat' index 2 using 1:2 with lines lw 2 title 'batch 8', \
     'percentiles.dat' index 3 using 1:2 with lines lw 2 title 'batch 16', \
     'percentiles.dat' index 4 using 1:2 with lines lw 2 title 'batch 32', \
     'percentiles.dat' index 5 using 1:2 with lines lw 2 title 'batch 64'
unset output
